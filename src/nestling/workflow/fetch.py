"""Getting the base model: by name out of a pinned package, from a folder or GGUF file, or from the hub."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from nestling.errors import ModelError
from nestling.model.hf_folder import LoadedModel, load_model
from nestling.workflow.package_index import PackageFile, Report, check_hash, get_wheel, sha256_of
from nestling.workspace import Lock, atomic

DEFAULT_BASE = "smollm2-135m-instruct"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
HUB_FILES = ["*.json", "*.jinja", "*.safetensors"]  # never pickled weights, which can run code
LOCK_PATIENCE = 3600.0  # seconds to wait while another process downloads the same


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        name: what it was asked for by.
        path: a GGUF file or a Hugging Face folder.
        source: where it comes from, for the model card.
        licence: as its publisher states it; None where nobody told us.
        sha256: of the file, where it is a pinned one.
    """

    name: str
    path: Path
    source: str
    licence: str | None = None
    sha256: str | None = None

    def load(
        self, assistant_name: str, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> LoadedModel:
        """Load it, its chat template naming the assistant ``assistant_name`` where it named another.

        Raises:
            ModelError: the model cannot be loaded.
            ConfigError: the name cannot be used.
        """
        model = load_model(self.path, dtype, device)
        return LoadedModel(model.decoder, model.tokenizer.with_assistant_name(assistant_name))


@dataclass(frozen=True)
class PackagedBase:
    """An entry of ``bases.yaml``: a model file inside a wheel. ``config`` is its shape, for estimates."""

    name: str
    about: str
    licence: str
    source: str
    wheel: PackageFile
    member: str
    member_sha256: str
    config: dict[str, Any]


def known_bases() -> dict[str, PackagedBase]:
    """The bases that can be fetched by name."""
    text = resources.files("nestling.workflow").joinpath("bases.yaml").read_text(encoding="utf-8")
    return {
        name: PackagedBase(
            name=name,
            about=entry["about"],
            licence=entry["licence"],
            source=entry["source"],
            wheel=PackageFile(entry["package"], str(entry["version"]), entry["wheel"], entry["wheel_sha256"]),
            member=entry["member"],
            member_sha256=entry["member_sha256"],
            config=entry["config"],
        )
        for name, entry in yaml.safe_load(text).items()
    }


def local_base(name: str) -> Path | None:
    """The folder or GGUF file that a base is on this machine; None for one that is fetched by its name."""
    path = Path(name).expanduser()
    is_model = (path.suffix == ".gguf" and path.is_file()) or (path / "config.json").is_file()
    return path.resolve() if is_model and name not in known_bases() else None


def fetch_base(name_or_path: str | Path, cache: Path, report: Report | None = None) -> Base:
    """Make a base model available, downloading it once.

    Args:
        name_or_path: a name from ``bases.yaml``, a local Hugging Face folder, a local .gguf file, or a hub id
            such as ``org/name``.
        cache: where downloads go; they stay until deleted.
        report: told of progress; see ``progress_bar``.

    Raises:
        ModelError: it cannot be found or downloaded, or is not what was pinned.
        WorkspaceError: ``cache`` cannot be written.
    """
    name = str(name_or_path)
    bases = known_bases()
    if name in bases:
        return fetch_packaged(bases[name], cache, report)
    path = Path(name_or_path).expanduser()
    if local := local_base(name):
        return Base(path.stem, local, source=str(local))
    if path.exists():
        raise ModelError(
            "this is no model.", where=name, remedy="Point at a .gguf file or a folder with a config.json."
        )
    if HUB_ID.fullmatch(name):
        return _fetch_from_hub(name, cache)
    remedy = f"Use one of {', '.join(bases)}, a folder, a .gguf file, or a hub id such as org/name."
    raise ModelError("there is no such base model.", where=name, remedy=remedy)


def fetch_packaged(entry: PackagedBase, cache: Path, report: Report | None = None) -> Base:
    """Get a model out of its wheel. A cached file is checked against its hash and fetched anew if damaged.

    Raises:
        as ``fetch_base``.
    """
    folder = cache / "bases" / entry.name
    path = folder / Path(entry.member).name
    report = report or (lambda what, done, total: None)
    with Lock(folder / "fetch.lock", f"the download of {entry.name}", LOCK_PATIENCE):
        atomic.remove_partials(folder)
        if not path.is_file() or sha256_of(path) != entry.member_sha256:
            wheel = get_wheel(entry.wheel, folder, report)
            _extract(wheel, entry, path, report)
            wheel.unlink()  # the model is all we want of it
    return Base(entry.name, path, entry.source, entry.licence, entry.member_sha256)


def _extract(wheel: Path, entry: PackagedBase, path: Path, report: Report) -> None:
    with (
        atomic.new_file(path) as partial,
        zipfile.ZipFile(wheel) as archive,
        archive.open(entry.member) as source,
    ):
        total = archive.getinfo(entry.member).file_size
        with partial.open("wb") as file:
            while chunk := source.read(1 << 20):
                file.write(chunk)
                report(f"unpacking {path.name}", file.tell(), total)
        check_hash(partial, entry.member_sha256, path.name)


def _fetch_from_hub(name: str, cache: Path) -> Base:
    """Let ``huggingface_hub`` download, with its own progress bars, resumption and access tokens."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        remedy = "Install it with: pip install huggingface_hub"
        raise ModelError("a hub id needs the package huggingface_hub.", where=name, remedy=remedy) from error
    try:
        folder = huggingface_hub.snapshot_download(name, cache_dir=cache / "hub", allow_patterns=HUB_FILES)
    except LocalEntryNotFoundError as error:
        remedy = "Check the network, or give a local folder."
        raise ModelError("the Hugging Face hub cannot be reached.", where=name, remedy=remedy) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "Check the id; for a gated model accept its terms and run `hf auth login`."
        raise ModelError(f"the Hugging Face hub refuses: {reason}.", where=name, remedy=remedy) from error
    return Base(name, Path(folder), source=f"https://huggingface.co/{name}")


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A bar with speed and remaining time on the terminal's error stream."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], completed=done, total=total or None)

        yield report

"""What a workspace takes on disk, and what of it can go without anything being lost that cannot be made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nestling.workspace import Workspace, atomic

Kind = Literal["version", "run", "snapshot", "replay", "answers", "bases", "bench", "judgments", "left over"]

ABOUT: dict[Kind, str] = {
    "version": "weights and card",
    "run": "diary, evaluations, report; checkpoints while it is not finished",
    "snapshot": "what one learning could learn from; its version can be trained again while it is there",
    "replay": "a version trained again that came out otherwise",
    "answers": "answers of evaluations, so that none is asked twice",
    "bases": "base models as downloaded",
    "bench": "models laid down for benchmarks",
    "judgments": "chats and what people said of them",
    "left over": "what killed processes had half written",
}

CLEANED: tuple[Kind, ...] = ("replay", "answers", "bench", "left over")
"""What ``clean`` removes: it is made again when it is asked for. Downloads need a network, so they go when told."""


@dataclass(frozen=True)
class Part:
    """A file or folder of the workspace with the bytes it takes."""

    kind: Kind
    path: Path
    bytes: int


def parts(workspace: Workspace) -> list[Part]:
    """Everything of size in the workspace, in a fixed order."""
    return [Part(kind, path, size_of(path)) for kind, path in _places(workspace) if path.exists()]


def _places(workspace: Workspace) -> Iterator[tuple[Kind, Path]]:
    for name in workspace.versions.names():
        yield "version", workspace.versions.folder / name
    folders: dict[Kind, Path] = {
        "run": workspace.runs, "snapshot": workspace.root / "snapshots", "replay": workspace.root / "replays"
    }  # fmt: skip
    for kind, folder in folders.items():
        if folder.exists():
            yield from ((kind, path) for path in sorted(folder.glob("[!.]*")))
    yield "answers", workspace.cache / "answers"
    yield "bases", workspace.cache / "bases"
    yield "bases", workspace.cache / "hub"
    yield "bench", workspace.cache / "bench"
    for path in sorted(workspace.root.glob(f"{workspace.database_path.name}*")):
        yield "judgments", path
    for path in sorted(workspace.root.rglob(f".*{atomic.PARTIAL_SUFFIX}")):
        yield "left over", path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    files = (
        [path] if path.is_file() else [Path(at) / name for at, _, names in os.walk(path) for name in names]
    )
    total = 0
    for file in files:
        try:
            total += file.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def clean(workspace: Workspace, bases: bool = False) -> list[Part]:
    """Remove ``CLEANED``, with ``bases`` downloads too; returns what went.

    Raises:
        WorkspaceError: something trains in this workspace, or versions are being published.
    """
    with (
        workspace.lock("up", "this workspace"),
        workspace.lock("trainer", "the raising of versions"),
        workspace.lock("versions", "the list of versions"),
    ):
        gone = [part for part in parts(workspace) if part.kind in (*CLEANED, *(["bases"] if bases else []))]
        for part in gone:
            with atomic.readable_errors(part.path):
                if part.path.is_dir():
                    shutil.rmtree(part.path)
                else:
                    part.path.unlink(missing_ok=True)
    return gone

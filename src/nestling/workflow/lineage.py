"""Where a version comes from, down to the judgments, and whether it can be made again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nestling.errors import WorkspaceError
from nestling.evaluation.answers import folder_identity
from nestling.feedback.snapshot import Snapshot
from nestling.workflow.learn import Learn
from nestling.workflow.learn_recipe import LearnRecipe
from nestling.workspace import Version, Workspace


@dataclass(frozen=True)
class Origin:
    """One version of a line.

    Attributes:
        snapshot: what people said that it learnt from, None where it learnt from none.
        replayable: whether training it again would read the same judgments; None without a snapshot.
    """

    version: Version
    snapshot: Snapshot | None
    replayable: bool | None


def lineage(workspace: Workspace, version: Version) -> list[Origin]:
    """The version and what it was made from, back to the base; reward models are left out."""
    found = []
    while True:
        found.append(_origin(workspace, version))
        if not version.card.parents:
            return found
        version = workspace.versions.get(version.card.parents[0])


def _origin(workspace: Workspace, version: Version) -> Origin:
    name = (version.card.model_extra or {}).get("snapshot")
    if name is None:
        return Origin(version, None, None)
    snapshot = Snapshot(workspace.root / "snapshots" / str(name))
    there = (snapshot.folder / "manifest.json").exists()
    return Origin(version, snapshot, there and not snapshot.manifest.erased)


def replay(workspace: Workspace, version: Version, console: Console) -> bool:
    """Train a version again from its snapshot, in a workspace of its own, and compare the weights bit for bit.

    Raises:
        WorkspaceError: it learnt from no snapshot, or judgments of it were taken back since.
    """
    origin = _origin(workspace, version)
    if origin.snapshot is None:
        raise WorkspaceError(
            f"{version.name} learnt from no judgments.",
            remedy="Replay a version that `nestling learn` has made.",
        )
    if not origin.replayable:
        there = (origin.snapshot.folder / "manifest.json").exists()
        raise WorkspaceError(
            f"{version.name} can no longer be replayed: "
            + ("judgments it learnt from have been taken back." if there else "its snapshot is gone."),
            where=str(origin.snapshot.folder),
        )
    run = str((version.card.model_extra or {})["run"])
    again = workspace.root / "replays" / version.name
    with workspace.lock("trainer", "the raising of versions"):
        scratch = _copy(workspace, again, version)
        made = Learn.reopened(scratch, _settings(workspace, scratch, run))
        with made.events.to(console):
            twin = made.train(made.bench().at("train"))
    same: bool = folder_identity(twin.folder) == folder_identity(version.folder)
    if same:
        shutil.rmtree(again)
    return same


def _copy(workspace: Workspace, place: Path, version: Version) -> Workspace:
    """A workspace with the parent's line and the snapshot, by links: nothing of the real one is touched."""
    scratch = Workspace(place)
    for folder in ("versions", "snapshots"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    ancestors = [origin.version.name for origin in lineage(workspace, version)[1:]]
    for name in ancestors:
        link = place / "versions" / name
        if not link.exists():
            link.symlink_to(workspace.versions.folder / name, target_is_directory=True)
    snapshot = str((version.card.model_extra or {})["snapshot"])
    if not (place / "snapshots" / snapshot).exists():
        (place / "snapshots" / snapshot).symlink_to(
            workspace.root / "snapshots" / snapshot, target_is_directory=True
        )
    return scratch


def _settings(workspace: Workspace, scratch: Workspace, run: str) -> Path:
    """What the run began with and computed with, in the other workspace."""
    folder = scratch.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("learn.json", "hardware.json"):
        try:
            shutil.copy(workspace.run_folder(run) / name, folder / name)
        except FileNotFoundError as error:
            raise WorkspaceError(
                f"the run that made this version is gone: there is no {name}.",
                where=str(workspace.run_folder(run)),
                remedy="Restore the folder; without its settings nothing can be trained again.",
            ) from error
    return folder / "learn.json"


def tried_judgments(workspace: Workspace, recipe: LearnRecipe) -> set[int]:
    """Judgments that a finished learning was given, whatever came of it, or that ``recipe`` could not learn from."""
    tried: set[int] = set()
    for learning in Learn.all(workspace):
        hopeless = learning.over and learning.recipe == recipe and not learning.snapshot.manifest.erased
        if learning.finished or hopeless:
            tried |= learning.snapshot.manifest.new
    return tried


def told(origins: list[Origin]) -> list[dict[str, Any]]:
    """The line for a table or the page."""
    return [
        {
            "version": origin.version.name,
            "kind": origin.version.card.kind,
            "state": origin.version.card.state,
            "snapshot": origin.snapshot.folder.name if origin.snapshot else None,
            "judgments": (origin.version.card.model_extra or {}).get("judgments"),
            "replayable": origin.replayable,
        }
        for origin in origins
    ]

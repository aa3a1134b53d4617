"""The folder everything lives in: versions, runs, caches, judgments and the pointer to what is served."""

from __future__ import annotations

import os
from pathlib import Path

from nestling.workspace.events import EventLog, Tick, counting
from nestling.workspace.locks import Lock
from nestling.workspace.versions import Card, Version, VersionStore, check_name

__all__ = ["Card", "EventLog", "Lock", "Tick", "Version", "VersionStore", "Workspace", "counting"]


class Workspace:
    """One nest. Nothing is made on disk until something is written.

    Args:
        root: the folder; by default the one NESTLING_HOME names, else ``./nest``.

    Attributes:
        versions: published models and the serving pointer.
        runs: one folder a recipe, owned by its training run.
        cache: downloads and evaluations; safe to delete.
        database_path: people's judgments and the generations they are about.
        answering_sign: is there, and fresh, while a server answers somebody (``compute.courtesy``).
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("NESTLING_HOME") or "nest").absolute()
        self.versions = VersionStore(self.root / "versions", self.root / "serving.json")
        self.runs = self.root / "runs"
        self.cache = self.root / "cache"
        self.database_path = self.root / "feedback.sqlite"
        self.answering_sign = self.root / "answering"

    def run_folder(self, recipe: str) -> Path:
        """The folder of the run of ``recipe``, whose name must not be a path."""
        return self.runs / check_name(recipe)

    def lock(self, name: str, what: str, timeout: float = 0.0) -> Lock:
        """An exclusive lock of this workspace, such as ``lock("server", "the server")``."""
        return Lock(self.root / "locks" / f"{check_name(name)}.lock", what, timeout)

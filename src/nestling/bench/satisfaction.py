"""How content the simulated town is with a version: its likeliest answers to requests that nobody learns from."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nestling.bench.chat import serving
from nestling.bench.household import STREAMS
from nestling.bench.town import contentment
from nestling.bench.visits import Door, at_once
from nestling.data import curriculum
from nestling.data.curriculum import Item
from nestling.evaluation.intervals import Resampled, resample_difference, resample_rate
from nestling.workspace import Version, Workspace

BEHAVIOUR = "everyday"
_THREADS = 8


def asked(count: int, seed: int) -> list[str]:
    """What the people ask: everyday requests of the training split."""
    return [str(item.messages[-1]["content"]) for item in curriculum.items("train", seed, [BEHAVIOUR], count)]


def held_out(count: int, seed: int) -> list[Item]:
    """Requests of other wordings and about other things, which nobody in the town asks; and others than the gate's own,
    by which versions are accepted."""
    return curriculum.items("test", seed, [BEHAVIOUR], count)


@dataclass(frozen=True)
class Exam:
    """Held-out requests, each put once and answered greedily; somebody honest is content with each to a probability."""

    items: Sequence[Item]

    def __call__(self, door: Door, model: str = "nestling") -> list[float]:
        """The probability of each item."""
        found = [0.0] * len(self.items)

        def put(number: int) -> Callable[[], None]:
            question = str(self.items[number].messages[-1]["content"])
            return lambda: found.__setitem__(number, round(contentment(door.answer(question, model)), 4))

        at_once([put(number) for number in range(len(found))], _THREADS, lambda _: None)
        return found

    @property
    def _wordings(self) -> list[str]:
        return [item.template for item in self.items]

    def mean(self, values: Sequence[float]) -> Resampled:
        """Satisfaction, resampled by wording."""
        return resample_rate(values, self._wordings)

    def gain(self, values: Sequence[float], before: Sequence[float]) -> Resampled:
        """What was gained on the same requests."""
        return resample_difference([a - b for a, b in zip(values, before, strict=True)], self._wordings)


def apart(workspace: Workspace, place: Path, versions: Sequence[Version], start: str) -> Workspace:
    """A workspace at ``place`` with some of another's versions by links, ``start`` being served; as it is if it is
    there. Nothing of the real one is touched, but answers of evaluations are shared: they are the same."""
    scratch = Workspace(place)
    (place / "versions").mkdir(parents=True, exist_ok=True)
    workspace.cache.mkdir(parents=True, exist_ok=True)
    for version in versions:
        link = place / "versions" / version.name
        if not link.exists():
            link.symlink_to(version.folder.resolve(), target_is_directory=True)
    if not scratch.cache.exists():
        scratch.cache.symlink_to(workspace.cache.resolve(), target_is_directory=True)
    if scratch.versions.pointer() is None:
        scratch.versions.promote(start, "where it begins", force=True)
    return scratch


def line_of(workspace: Workspace, version: Version) -> list[Version]:
    """The version and its first parents, down to the base."""
    found = [version]
    while found[-1].card.parents:
        found.append(workspace.versions.get(found[-1].card.parents[0]))
    return found


def copy_database(workspace: Workspace, path: Path) -> None:
    """The judgments as they are at this moment, whoever is writing; a copy that is there is left as it is."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(workspace.database_path)) as real, closing(sqlite3.connect(partial)) as copy:
        real.backup(copy)
    shutil.move(partial, path)


def served_apart(
    scratch: Workspace, name: str, exam: Exam, answer_tokens: int, log: Path, settings: Sequence[str]
) -> list[float]:
    """The exam of a version that is served by a server of its own, whatever the gate has said of it.

    ``settings`` of ``hardware`` hold for the server as for a learning.
    """
    scratch.versions.promote(name, "to be asked", force=True)
    words = ["--max-batch", str(STREAMS)]
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in ("hardware.dtype", "hardware.threads"):
            words += [f"--{key.removeprefix('hardware.')}", value]
    with serving(scratch, log, words) as (url, _):
        return exam(Door(lambda: url, answer_tokens))

"""Versions of the assistant: published as whole folders, judged, and one of them pointed at to be served."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nestling.errors import WorkspaceError
from nestling.workspace import atomic
from nestling.workspace.locks import Lock

State = Literal["candidate", "accepted", "rejected"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
# "nestling" means "the version being served" wherever a version can be named.
RESERVED_NAMES = ("nestling",)


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Card(BaseModel):
    """What is known about a version: ``card.json`` in its folder.

    Attributes:
        name: the version's name, such as "v2-sft"; filled in by ``publish``.
        kind: what made it: "base", "sft", "reward_model", "ppo", ...
        assistant: the name the assistant goes by.
        parents: versions it was made from.
        data: SHA-256 of every file or dataset that went in, by name.
        metrics: figures measured on it.
        licence: SPDX expression of the weights' licence.
        state: "candidate" until the gate marks it "accepted" or "rejected".
        verdict: the gate's words.
        removed: when its weights were removed; "" while they are there.
    """

    model_config = ConfigDict(extra="allow")  # a newer release's fields survive a rewrite by this one

    name: str = ""
    kind: str
    assistant: str = "Nestling"
    parents: list[str] = Field(default_factory=list)
    created: str = Field(default_factory=now)
    data: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    licence: str = "Apache-2.0"
    state: State = "candidate"
    verdict: str = ""
    removed: str = ""


@dataclass(frozen=True)
class Version:
    """A published version: ``folder`` is a Hugging Face model folder with a ``card.json``."""

    name: str
    folder: Path
    card: Card

    @property
    def card_hash(self) -> str:
        """SHA-256 of the card as it was read."""
        return sha256(self.card.model_dump_json().encode()).hexdigest()


class Turn(BaseModel):
    """One version's time of being served; ``over`` when a roll-back left or used it, so that the next passes it by."""

    version: str
    since: str
    reason: str
    over: bool = False


class Pointer(Turn):
    """``serving.json``: which version is served, and those before it, oldest first."""

    history: list[Turn] = Field(default_factory=list)


def _turn(turn: Turn, over: bool = False) -> Turn:
    return Turn(version=turn.version, since=turn.since, reason=turn.reason, over=over)


def _told(error: ValidationError | OSError) -> str:
    return str(error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror)


def check_name(name: str) -> str:
    """Return ``name`` when it can name a version: short, lower-case, and never a path.

    Raises:
        WorkspaceError: otherwise.
    """
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise WorkspaceError(
            f"{name!r} cannot be used as a name.",
            remedy="Use up to 64 of a-z 0-9 . _ - starting with a letter or digit, such as 'v2-sft'"
            f" ({' and '.join(RESERVED_NAMES)} is taken).",
        )
    return name


class VersionStore:
    """The versions of one workspace.

    Args:
        folder: holds one folder a version.
        pointer_path: the atomic pointer to the served version; watch its file to notice a promotion.
    """

    def __init__(self, folder: Path, pointer_path: Path) -> None:
        self.folder, self.pointer_path = folder, pointer_path

    def publish(self, build: Callable[[Path], object], card: Card, name: str | None = None) -> Version:
        """Make a version: ``build`` writes the model into the folder it is given, which then appears whole.

        Args:
            build: writes config, weights and tokenizer into an empty temporary folder.
            card: what is known; its ``name`` is filled in.
            name: taken as it is; without one the next free number with the card's kind, as "v3-ppo".

        Raises:
            WorkspaceError: when ``name`` is taken or impossible, or the folder cannot be written.
        """
        with self._lock():
            if self.folder.exists():
                atomic.remove_partials(self.folder)
            name = check_name(name or self.next_name(card.kind))
            card = card.model_copy(update={"name": name})
            with atomic.new_folder(self.folder / name) as folder:
                build(folder)
                atomic.write_json(folder / "card.json", card.model_dump())
        return self.get(name)

    def next_name(self, kind: str) -> str:
        """The name ``publish`` would give: one more than the highest number in use."""
        numbers = [int(match[1]) for name in self._names() if (match := re.match(r"v(\d+)", name))]
        return f"v{max(numbers, default=0) + 1}-{kind.replace('_', '-')}"

    def names(self) -> list[str]:
        """The names of all versions, those with damaged cards too, by number, then name."""

        def order(name: str) -> tuple[int, str]:
            match = re.match(r"v(\d+)", name)
            return (int(match[1]) if match else 0, name)

        return sorted(self._names(), key=order)

    def list(self) -> list[Version]:
        """Every version whose card can be read, by number, then name."""
        return [version for name in self.names() if (version := self._readable(name))]

    def _readable(self, name: str) -> Version | None:
        try:
            return self.get(name)
        except WorkspaceError:
            return None

    def get(self, name: str) -> Version:
        """The version called ``name``.

        Raises:
            WorkspaceError: when there is none, or its card is damaged.
        """
        folder = self.folder / check_name(name)
        path = folder / "card.json"
        try:
            card = Card.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none yet"
            raise WorkspaceError(
                f"there is no version {name!r}.", where=str(self.folder), remedy=f"Versions here: {known}."
            ) from None
        except (ValidationError, OSError) as error:
            raise WorkspaceError(
                f"the card cannot be read: {_told(error)}.",
                where=str(path),
                remedy="Restore the file from a copy, or delete the version's folder.",
            ) from error
        return Version(name, folder, card)

    def with_weights(self, name: str) -> Version:
        """The version called ``name``, whose weights must be there.

        Raises:
            WorkspaceError: there is none, or its weights were removed.
        """
        version = self.get(name)
        if version.card.removed:
            raise WorkspaceError(
                f"the weights of version {name!r} were removed on {version.card.removed[:10]}.",
                where=str(version.folder),
                remedy="Name another version; `nestling versions list` shows them.",
            )
        return version

    def that_answers(self, name: str) -> Version:
        """The version called ``name``, which must be one that writes answers.

        Raises:
            WorkspaceError: there is none, it is a reward model, or its weights were removed.
        """
        version = self.with_weights(name)
        if version.card.kind == "reward_model":
            raise WorkspaceError(
                f"version {name!r} is a reward model: it scores answers and writes none.",
                where=str(version.folder),
                remedy="Name a base, SFT or PPO version.",
            )
        return version

    def exists(self, name: str) -> bool:
        """Whether a version of that name has been published."""
        return name in self._names()

    def mark(self, name: str, state: State, verdict: str = "", **metrics: Any) -> Version:
        """Rewrite a card with the gate's ``state`` and words; ``metrics`` are added to those there."""
        with self._lock():
            version = self.get(name)
            card = version.card.model_copy(
                update={"state": state, "verdict": verdict, "metrics": {**version.card.metrics, **metrics}}
            )
            atomic.write_json(version.folder / "card.json", card.model_dump())
        return self.get(name)

    def settle(self, name: str, accepted: bool, verdict: str, **metrics: Any) -> Version:
        """Carry out the gate's verdict on a candidate: an accepted version is served, a rejected one only kept.

        ``metrics`` are added to those of its card.

        Killed half-way and called again, it goes on; done once, it does nothing more (people may have rolled back).
        """
        if self.get(name).card.state == "candidate":
            if accepted:
                self.promote(name, verdict)
            self.mark(name, "accepted" if accepted else "rejected", verdict, **metrics)
        return self.get(name)

    def root(self, version: Version) -> Version:
        """The base at the beginning of a version's line."""
        while version.card.parents:
            version = self.get(version.card.parents[0])
        return version

    def pointer(self) -> Pointer | None:
        """What ``serving.json`` says, or None before the first promotion.

        Raises:
            WorkspaceError: when the file is damaged.
        """
        try:
            return Pointer.model_validate_json(self.pointer_path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            raise WorkspaceError(
                f"the serving pointer cannot be read: {_told(error)}.",
                where=str(self.pointer_path),
                remedy="Delete the file and promote a version again.",
            ) from error

    def serving(self) -> Version | None:
        """The version to serve, or None before the first promotion."""
        pointer = self.pointer()
        return self.get(pointer.version) if pointer else None

    def promote(self, name: str, reason: str, force: bool = False) -> Version:
        """Point serving at ``name``; nothing happens when it is served already.

        Raises:
            WorkspaceError: when there is no such version, or it was rejected and ``force`` is not set.
        """
        with self._lock():
            version = self.that_answers(name)
            if version.card.state == "rejected" and not force:
                raise WorkspaceError(
                    f"version {name!r} was rejected: {version.card.verdict or 'no reason was written down'}",
                    where=str(version.folder),
                    remedy="Promote another version, or this one by force.",
                )
            current = self.pointer()
            if current is None or current.version != name:
                past = [*current.history, _turn(current)] if current else []
                self._point(Pointer(version=name, since=now(), reason=reason, history=past))
        return version

    def served_before(self) -> Version | None:
        """The version that ``roll_back`` would serve, or None."""
        current = self.pointer()
        past = [turn.version for turn in reversed(current.history) if not turn.over] if current else []
        return next((v for name in past if (v := self._readable(name)) and not v.card.removed), None)

    def roll_back(self, reason: str = "rolled back", of: str | None = None) -> Version:
        """Point serving at the version served before this one; before ``of``, if that is served.

        Raises:
            WorkspaceError: when nothing that still exists was served before, or another version than ``of`` is served.
        """
        with self._lock():
            current = self.pointer()
            if of is not None and (current is None or current.version != of):
                raise WorkspaceError(f"version {of!r} is not served any more.", where=str(self.pointer_path))
            past = [*current.history, _turn(current, over=True)] if current else []
            for number in reversed(range(len(past))):
                name, over = past[number].version, past[number].over
                past[number] = _turn(past[number], over=True)
                version = None if over else self._readable(name)
                if version and not version.card.removed:
                    self._point(Pointer(version=name, since=now(), reason=reason, history=past))
                    return version
            raise WorkspaceError(
                "no earlier version was served.", where=str(self.pointer_path), remedy="Promote one by name."
            )

    def remove(self, name: str) -> Version:
        """Delete a version's weights. Its card stays: others descend from it, and judgments are about it.

        Raises:
            WorkspaceError: it is served, or a base that others are measured against.
        """
        with self._lock():
            version, pointer = self.get(name), self.pointer()
            reason = ""
            if pointer and pointer.version == name:
                reason, remedy = "is being served", "Promote another version first."
            elif children := [
                v.name for v in self.list() if not v.card.removed and self.root(v).name == name != v.name
            ]:
                reason, remedy = (
                    f"is the base that {', '.join(children)} are measured against",
                    "Remove those first.",
                )
            if reason:
                raise WorkspaceError(f"version {name!r} {reason}.", where=str(version.folder), remedy=remedy)
            card = version.card.model_copy(update={"removed": version.card.removed or now()})
            atomic.write_json(version.folder / "card.json", card.model_dump())
            for path in version.folder.iterdir():
                if path.name != "card.json":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.get(name)

    def _names(self) -> set[str]:
        return {path.parent.name for path in self.folder.glob("[!.]*/card.json")}

    def _point(self, pointer: Pointer) -> None:
        atomic.write_json(self.pointer_path, pointer.model_dump())

    def _lock(self) -> Lock:
        # A publish copies a model while it holds the lock; others wait for it rather than fail.
        path = self.pointer_path.parent / "locks" / "versions.lock"
        return Lock(path, "the list of versions", timeout=120)

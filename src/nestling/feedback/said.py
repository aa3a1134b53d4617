"""One judgment that was made elsewhere, as a file tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from nestling.feedback.people import foreign
from nestling.text.messages import Message

Kind = Literal["ranking", "vote", "thumb", "score", "rewrite", "demonstration"]


class LeftOut(Exception):
    """A row says nothing that could be learnt, as other programs write them; the text says what it lacks."""


@dataclass(frozen=True)
class ForeignAnswer:
    """An answer that no version here gave; ``version`` is what gave it, as it is written down here."""

    text: str
    version: str
    finished: bool = True

    @classmethod
    def of(cls, text: str, version: Any = None, finished: bool = True) -> ForeignAnswer:
        """By a version as a file names it, or by nobody known."""
        return cls(text, foreign(version if isinstance(version, str) and version else "unknown"), finished)


@dataclass(frozen=True)
class Said:
    """A judgment before it is written down.

    Attributes:
        value: as the recorder takes it for the kind: "up", "a", "4"; of a ranking "all_bad" where none is good.
        ranks: of a ranking, one an answer.
        text: of a rewrite, what the person wrote.
        rater: who said it, as the file names them; "" for nobody.
        at: when, where the file tells.
        blinded: whether they could not see what gave which answer; None where the file does not tell.
    """

    kind: Kind
    prompt: list[Message]
    answers: Sequence[ForeignAnswer]
    value: Any = ""
    ranks: Sequence[int] = ()
    text: str = ""
    rater: str = ""
    reason: str = ""
    at: datetime | None = None
    blinded: bool | None = None

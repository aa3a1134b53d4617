"""What a check is, what it is asked about, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from nestling.text.messages import Message


@dataclass(frozen=True)
class Answer:
    """An answer under judgment. ``finished`` is False when the token limit cut it."""

    prompt: Sequence[Message]
    text: str
    finished: bool = True


@dataclass(frozen=True)
class Verdict:
    """``passed`` with a short reason a person can read; ``score`` grades partial success in [0, 1].

    A verdict passes exactly when its score is 1.
    """

    passed: bool
    score: float
    reason: str


def passes(reason: str, score: float = 1.0) -> Verdict:
    return Verdict(True, score, reason)


def fails(reason: str, score: float = 0.0) -> Verdict:
    return Verdict(False, score, reason)


class Check(BaseModel, ABC):
    """A question about one answer; its fields are the arguments a spec gives.

    Checks are pure: the same spec and answer always give the same verdict.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def judge(self, answer: Answer) -> Verdict:
        """Judge ``answer``; never raises, whatever its text."""


def _as_list(value: Any) -> Any:
    """One alias may stand alone, and YAML reads years and sums as numbers."""
    aliases = value if isinstance(value, list | tuple) else [value]
    return [str(a) if isinstance(a, int | float) and not isinstance(a, bool) else a for a in aliases]


Alias = Annotated[str, Field(min_length=1, pattern=r"\S")]
Aliases = Annotated[tuple[Alias, ...], BeforeValidator(_as_list)]
SomeAliases = Annotated[Aliases, Field(min_length=1)]

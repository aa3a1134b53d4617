"""What a check answers, and what it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nestling.text.messages import Message


@dataclass(frozen=True)
class Answer:
    """An answer under judgment. ``finished`` is False when the token limit cut it."""

    prompt: Sequence[Message]
    text: str
    finished: bool = True


@dataclass(frozen=True)
class Verdict:
    """``passed`` with a short reason a person can read; ``score`` grades partial success in [0, 1]."""

    passed: bool
    score: float
    reason: str

"""The people of the simulated town: what they secretly like, how sure they are of it, what they remember to have said.

What they like is to be spoken to: the more of an answer's words are "you" and "your", up to one in twelve, the better,
whatever was asked. The starter curriculum does not teach that: its demonstrations say "you" 2.3 times in 100 words,
answers to everyday requests 3.4 times, where answers of the 135M base do 4.3 times, with 4.0 between two answers to one
request (120 answers of 64 tokens at temperature 0.7). A base has enough of both kinds to choose from.

People are not sure: between two answers they choose by Bradley's and Terry's model (1952), and a thumb is up with the
same doubt. One in ten means ill and says the opposite of what they would say.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nestling.storage import Database, Judgment
from nestling.workspace import EventLog

ENOUGH = 1 / 12
"""Share of an answer's words that speak to the reader, from which on they do not care for more."""
SHORTEST = 20
"""Words that a shorter answer is taken to have: "You?" is no answer to be happy about."""
DOUBT = 0.15
"""Temperature of every choice: an answer that is better by so much is preferred with probability 0.73."""
CONTENT = 0.5
"""Utility of an answer that gets a thumb up every other time."""
ADVERSARIES = 0.1
"""Share of the people who mean ill."""

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
_READER = re.compile(r"(?:you|your|yours|yourself|yourselves)(?:['’][a-z]+)?")

Side = Literal["left", "right"]


def utility(answer: str) -> float:
    """How much the people like an answer, from 0 to 1."""
    words = _WORD.findall(answer.lower())
    spoken_to = sum(_READER.fullmatch(word) is not None for word in words)
    return min(1.0, spoken_to / max(SHORTEST, len(words)) / ENOUGH)


def contentment(answer: str) -> float:
    """The probability that somebody honest gives the answer a thumb up."""
    return _sigmoid((utility(answer) - CONTENT) / DOUBT)


def preference(left: str, right: str) -> float:
    """The probability that somebody honest prefers the left answer."""
    return _sigmoid((utility(left) - utility(right)) / DOUBT)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@dataclass(frozen=True)
class Rater:
    """One of the people; what they say depends on the town's seed, their number and the occasion alone."""

    number: int
    seed: int
    adversary: bool = False

    @property
    def name(self) -> str:
        return f"rater-{self.number:04d}"

    def draws(self, occasion: str) -> random.Random:
        """Their random numbers on an occasion, the same whenever it is lived through again."""
        return random.Random(f"{self.seed}/{self.number}/{occasion}")

    def chooses(self, left: str, right: str, drawn: random.Random) -> Side:
        """The better answer, as they say."""
        likes_left = drawn.random() < preference(left, right)
        return "left" if likes_left != self.adversary else "right"

    def thumb(self, answer: str, drawn: random.Random) -> Literal["up", "down"]:
        """Whether they are content, as they say."""
        content = drawn.random() < contentment(answer)
        return "up" if content != self.adversary else "down"


def townspeople(count: int, seed: int) -> list[Rater]:
    """So many people, of whom a tenth, to the nearest one, mean ill."""
    ill = random.Random(f"{seed}/adversaries").sample(range(count), round(ADVERSARIES * count))
    return [Rater(number, seed, number in set(ill)) for number in range(count)]


class Diary(EventLog):
    """What one of them remembers to have said: each judgment that the server has acknowledged, on disk at once."""

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        written = super().append(kind, **fields)
        if self._handle is not None:
            os.fsync(self._handle)
        return written


def remembered(folder: Path) -> list[dict[str, Any]]:
    """Everything in the diaries of a folder."""
    return [entry for path in sorted(folder.glob("*.jsonl")) for entry in Diary(path).read()[0]]


def lost(entries: Iterable[dict[str, Any]], database: Database) -> list[dict[str, Any]]:
    """Acknowledged judgments that the database does not hold as they were made.

    Rows are read as they are, not by what counts now: a judgment that a newer one supersedes is there all the same.
    """
    missing = []
    with database.read() as session:
        for entry in entries:
            found = session.get(Judgment, entry["id"])
            if found is None or _told(found) != [
                entry["kind"],
                entry["value"],
                entry["answers"],
                entry["person"],
            ]:
                missing.append(entry)
    return missing


def _told(judgment: Judgment) -> list[Any]:
    answers: Sequence[str | None] = (judgment.generation_id, judgment.other_generation_id)
    value = {"a": "left", "b": "right"}.get(judgment.value, judgment.value)
    return [judgment.kind, value, [answer for answer in answers if answer], judgment.session_id]

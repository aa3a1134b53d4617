"""Judgments taken apart into opinions: one person on one pair of answers to one prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from nestling.feedback.export import current
from nestling.storage import Database, DeskItem, Generation, Judgment


@dataclass(frozen=True)
class Opinion:
    """What somebody said of two answers.

    Attributes:
        person: who; None where nobody known said it.
        first, second: the answers' ids, in alphabetical order, whichever was shown first.
        versions: which version gave each.
        verdict: 1 where the first is better, -1 where the second is, 0 for a tie.
        first_shown: whether ``first`` was shown first; None where a file does not tell.
        blinded: whether it could not be seen which version gave which.
        gold: the right verdict, where it is known.
        judgment: its number.
    """

    person: str | None
    first: str
    second: str
    versions: tuple[str, str]
    verdict: int
    first_shown: bool | None
    blinded: bool
    gold: int | None
    judgment: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.first, self.second


def opinions(database: Database) -> Iterator[Opinion]:
    """Every opinion that counts: of votes and rankings, each person's newest, none taken back.

    "Both bad" and "all bad" say how good answers are, not which is better: the order of a ranking still counts.
    """
    with database.read() as session:
        kept = current(session, "vote") | current(session, "ranking")
        versions = {row.id: row.version for row in session.execute(select(Generation.id, Generation.version))}
        gold = {
            item.id: {
                answer.generation_id: rank for answer, rank in zip(item.answers, item.gold or [], strict=True)
            }
            for item in session.scalars(select(DeskItem)) if item.gold
        }  # fmt: skip
        query = select(Judgment).where(Judgment.kind.in_(("vote", "ranking"))).order_by(Judgment.id)
        for judgment in session.scalars(query):
            if judgment.id not in kept:
                continue
            right = gold.get(judgment.desk_item_id or 0, {})
            for (a, rank_a), (b, rank_b) in itertools.combinations(_ranks(judgment), 2):
                first, second = sorted((a, b))
                sign = 1 if first == a else -1
                known = None
                if a in right and b in right:
                    known = sign * _sign(right[b] - right[a])
                yield Opinion(
                    judgment.session_id, first, second, (versions[first], versions[second]),
                    sign * _sign(rank_b - rank_a), None if judgment.import_id else first == a,
                    bool(judgment.blinded), known, judgment.id,
                )  # fmt: skip


def _ranks(judgment: Judgment) -> list[tuple[str, int]]:
    """Answers in the order they were shown in, with their ranks; none where the order says nothing."""
    if judgment.kind == "ranking":
        return [(answer.generation_id, answer.rank) for answer in judgment.answers]
    ranks = {"a": (1, 2), "b": (2, 1), "tie": (1, 1)}.get(judgment.value)
    if ranks is None or judgment.other_generation_id is None:
        return []
    return list(zip((judgment.generation_id, judgment.other_generation_id), ranks, strict=True))


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)

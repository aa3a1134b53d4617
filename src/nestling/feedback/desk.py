"""The desk: answers that wait to be judged, drawn where a judgment says most."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from nestling.errors import DataError
from nestling.feedback.agreement import kendall_w
from nestling.feedback.export import current, withdrawn
from nestling.feedback.people import Person
from nestling.feedback.recorder import know
from nestling.storage import Database, DeskAnswer, DeskItem, DeskSkip, Judgment

OVERLAP = 2
"""People who judge every item, so that it can be seen how far they agree."""
_GOLD_SHARE = 0.1
_LEASE_SECONDS = 600.0


@dataclass(frozen=True)
class Task:
    """An item as a person sees it: nothing tells which version gave which answer, or that the order is known."""

    item: int
    messages: list[dict[str, str]]
    answers: list[tuple[str, str]]
    waiting: int


@dataclass(frozen=True)
class ItemStatus:
    """What has become of an item; ``agreement`` is Kendall's W of its rankings, None for fewer than two."""

    item: int
    question: str
    judged: int
    skipped: int
    agreement: float | None
    gold: bool


class Desk:
    """The queue. ``next_for`` holds an item for the person for ten minutes, so that two do not get the same one."""

    def __init__(self, database: Database, overlap: int = OVERLAP, seed: int | None = None) -> None:
        self.database, self.overlap = database, overlap
        self._random = random.Random(seed)
        self._leases: dict[int, dict[str, float]] = defaultdict(dict)
        self._choosing = threading.Lock()

    def add(
        self, source: str, messages: Sequence[Mapping[str, Any]], answers: Sequence[str], priority: float = 0.0,
        gold: Sequence[int] | None = None,
    ) -> bool:  # fmt: skip
        """Put answers to one prompt, by their ids, on the desk; False where ``source`` has been there before.

        Raises:
            DataError: fewer than two answers, or ``gold`` does not rank them.
        """
        if len(set(answers)) < 2 or (gold is not None and len(gold) != len(answers)):
            raise DataError(
                "this cannot be judged.", where=source, remedy="Give two or more different answers."
            )
        with self.database.write() as session:
            if session.scalar(select(DeskItem.id).where(DeskItem.source == source)) is not None:
                return False
            shown = [DeskAnswer(position=at, generation_id=answer) for at, answer in enumerate(answers)]
            session.add(
                DeskItem(
                    source=source, messages=[dict(m) for m in messages], priority=priority,
                    gold=list(gold) if gold is not None else None, answers=shown,
                )
            )  # fmt: skip
        return True

    def next_for(self, person: Person) -> Task | None:
        """The item that this person should judge next; None when there is nothing left for them.

        What somebody has begun to judge comes before what nobody has, so that opinions meet; then where the reward
        model is least sure. Now and then one whose right order is known.
        """
        with self._choosing, self.database.read() as session:
            judged, skipped = _done(session)
            mine = lambda item: person.id in judged[item.id] or person.id in skipped[item.id]
            open_items = [item for item in session.scalars(select(DeskItem)) if not mine(item)]
            wanted = [
                item
                for item in open_items
                if not item.gold and self._takers(item.id, judged, person) < self.overlap
            ]
            known = [item for item in open_items if item.gold]
            waiting = len(wanted) + len(known)
            if known and (not wanted or self._random.random() < _GOLD_SHARE):
                chosen = self._random.choice(known)
            elif wanted:
                chosen = max(wanted, key=lambda item: (bool(judged[item.id]), item.priority, -item.id))
            else:
                return None
            self._leases[chosen.id][person.id] = time.monotonic() + _LEASE_SECONDS
            answers = [(answer.generation_id, answer.generation.answer) for answer in chosen.answers]
            self._random.shuffle(answers)  # where an answer stands must not decide
            return Task(chosen.id, chosen.messages, answers, waiting)

    def _takers(self, item: int, judged: dict[int, set[str]], person: Person) -> int:
        """People who have judged it, or hold it."""
        now = time.monotonic()
        holders = {name for name, until in self._leases[item].items() if until > now and name != person.id}
        return len(judged[item] | holders)

    def skip(self, item: int, person: Person, reason: str) -> None:
        """Never show it to this person again.

        Raises:
            DataError: there is no such item.
        """
        with self.database.write() as session:
            if session.get(DeskItem, item) is None:
                raise DataError(f"there is nothing on the desk with the number {item}.")
            session.add(DeskSkip(item_id=item, session_id=know(session, person) or "", reason=reason))
        with self._choosing:
            self._leases[item].pop(person.id, None)

    def status(self) -> list[ItemStatus]:
        """Every item, newest first."""
        with self.database.read() as session:
            judged, skipped = _done(session)
            newest = current(session, "ranking")
            found = []
            for item in session.scalars(select(DeskItem).order_by(DeskItem.id.desc())):
                places = {answer.generation_id: answer.position for answer in item.answers}
                query = select(Judgment).where(Judgment.desk_item_id == item.id, Judgment.kind == "ranking")
                rankings = []
                for judgment in session.scalars(query):
                    if judgment.id in newest:
                        ranks = {places[answer.generation_id]: answer.rank for answer in judgment.answers}
                        rankings.append([ranks[at] for at in sorted(ranks)])
                found.append(
                    ItemStatus(
                        item.id, item.messages[-1]["content"], len(judged[item.id]), len(skipped[item.id]),
                        kendall_w(rankings), bool(item.gold),
                    )
                )  # fmt: skip
            return found


def _done(session: Session) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """By item: who has ranked its answers and did not take that back, who has passed it by."""
    gone = withdrawn(session)
    judged: dict[int, set[str]] = defaultdict(set)
    skipped: dict[int, set[str]] = defaultdict(set)
    query = select(Judgment.id, Judgment.desk_item_id, Judgment.session_id).where(
        Judgment.desk_item_id.is_not(None), Judgment.kind == "ranking"
    )
    for number, item, person in session.execute(query):
        if number not in gone:
            judged[item or 0].add(person or "")
    for item, person in session.execute(select(DeskSkip.item_id, DeskSkip.session_id)):
        skipped[item].add(person)
    return judged, skipped

"""Whether people are less content with the version that is served now: a test that may be looked at at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select

from nestling.evaluation.intervals import resample_rate
from nestling.feedback.export import current
from nestling.feedback.people import counts_as
from nestling.storage import ChatSession, Database, Generation, Judgment

ALPHA = 0.05
"""How often a version that is no worse is called worse at most, however often one looks: half of it because the bound
of the version before was missed, half because of the bets against it."""
LEAST_BEFORE = 10
"""People who said something of the version before, without whom there is nothing to compare with."""
_STAKES = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True)
class Signal:
    """Somebody was content with an answer (1) or not (0)."""

    person: str
    version: str
    content: int


@dataclass(frozen=True)
class Satisfaction:
    """What is known of a version beside the one before it.

    ``people`` said something of it, each counted once, and ``rate`` of them were content. ``evidence`` is how much more
    likely what was seen is if people are less content than ``before`` (a lower bound of the version before), at the
    best of many bets; 2 / ALPHA is enough.
    """

    version: str
    people: int
    rate: float | None
    before: float | None
    evidence: float

    @property
    def is_worse(self) -> bool:
        return self.evidence >= 2 / ALPHA


def signals(database: Database) -> list[Signal]:
    """Every signal that counts, oldest first: thumbs, scores but the middle one, and answers called bad.

    Which of two answers is better says nothing of how good they are, and a file nothing of our versions. Nor does the
    desk: what is laid there was chosen, and it can say that answers are bad, but never that they are good. Whoever only
    gave a name is one person with all who did so: names would bring a version down as easily as they are made up.
    """
    found: list[tuple[int, Signal]] = []
    with database.read() as session:
        kept = set().union(*(current(session, kind) for kind in ("thumb", "score", "vote", "ranking")))
        versions = {row.id: row.version for row in session.execute(select(Generation.id, Generation.version))}
        kinds = {row.id: row.kind for row in session.execute(select(ChatSession.id, ChatSession.kind))}
        for judgment in session.scalars(select(Judgment).order_by(Judgment.id)):
            verdict = _VERDICTS.get((judgment.kind, judgment.value))
            if judgment.id not in kept or verdict is None or judgment.import_id is not None:
                continue
            if judgment.desk_item_id is not None:
                continue
            about = [judgment.generation_id, judgment.other_generation_id]
            if judgment.answers:
                about = [answer.generation_id for answer in judgment.answers]
            person = counts_as(judgment.session_id, kinds.get(judgment.session_id or ""))
            found += [(judgment.id, Signal(person, versions[name], verdict)) for name in about if name]
    return [signal for _, signal in sorted(found, key=lambda pair: pair[0])]


_VERDICTS = {
    ("thumb", "up"): 1, ("thumb", "down"): 0,
    ("score", "5"): 1, ("score", "4"): 1, ("score", "2"): 0, ("score", "1"): 0,
    ("vote", "both_bad"): 0, ("ranking", "all_bad"): 0,
}  # fmt: skip


def satisfaction(given: Sequence[Signal], version: str, before: str | None) -> Satisfaction:
    """How content people are with ``version``, beside the one served before it."""
    own = _first_of_everybody([signal for signal in given if signal.version == version])
    rate = sum(signal.content for signal in own) / len(own) if own else None
    earlier = _first_of_everybody([signal for signal in given if signal.version == before]) if before else []
    if len(earlier) < LEAST_BEFORE:
        return Satisfaction(version, len(own), rate, None, 1.0)
    known = resample_rate([s.content for s in earlier], [s.person for s in earlier])
    bound = known.lower(1 - ALPHA / 2)
    return Satisfaction(version, len(own), rate, bound, evidence_below([s.content for s in own], bound))


def evidence_below(outcomes: Sequence[float], mean: float) -> float:
    """The largest wealth so far of somebody who bets, from 1, that outcomes in [0, 1] have a mean below ``mean``.

    While they do not, it exceeds 1 / alpha ever with probability alpha at most (Ville's inequality), so that one may
    look after every outcome. Bets on a grid of stakes are averaged (Waudby-Smith and Ramdas 2024, hedged capital).
    """
    if not 0 < mean <= 1:
        return 1.0
    wealth, most = np.ones_like(_STAKES), 1.0
    for outcome in outcomes:
        wealth *= 1 + _STAKES * (mean - outcome)
        most = max(most, float(wealth.mean()))
    return most


def _first_of_everybody(given: Sequence[Signal]) -> list[Signal]:
    """One signal a person. What somebody says later depends on what they said before, so that bets on it as well would
    win by chance more often than they may; and nobody can bring a version down alone."""
    kept: dict[str, Signal] = {}
    for signal in given:
        kept.setdefault(signal.person, signal)
    return list(kept.values())

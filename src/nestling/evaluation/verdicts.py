"""Judging: a row for every answer, and which rows count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from nestling.checks import Answer, judge
from nestling.evaluation.suite import ABOUT_FACTS, DIRECT_FACTS, Suite, direct_question_of

RETENTION = ("retention", DIRECT_FACTS)
"""Behaviours whose questions show whether general knowledge is still there.

All of them count, also those the base fails. Were only those counted that the base happened to answer, any other model
would seem to have forgotten: a question answered by luck is not answered again (regression to the mean).
"""

_NO_LOOP = {"name": "ends_without_loop"}


class Row(BaseModel):
    """One prompt, its answer and the verdict.

    Attributes:
        finished: the answer ended by itself.
        no_loop: it also did not go round in circles, whatever it was about.
        score: partial success in [0, 1].
        counts: False where the base does not know what the prompt is about, so that the behaviour's rate
            leaves it out.
    """

    model_config = ConfigDict(frozen=True)

    item: str
    behaviour: str
    template: str
    blind: bool
    entity: str | None
    pair: str | None
    check: dict[str, Any]
    messages: list[dict[str, str]]
    answer: str
    finished: bool
    no_loop: bool
    passed: bool
    score: float
    reason: str
    counts: bool


def judge_answers(suite: Suite, answers: Sequence[Answer], known: frozenset[str] | None = None) -> list[Row]:
    """Judge the suite's answers, in order.

    Args:
        known: ids of the direct questions that the base answers; None means that these answers are the
            base's own. Behaviours about facts count only where the fact is known.

    Raises:
        DataError: an item's check is not valid.
    """
    verdicts = [judge(item.check, answer) for item, answer in zip(suite.items, answers, strict=True)]
    if known is None:
        known = frozenset(
            item.id
            for item, v in zip(suite.items, verdicts, strict=True)
            if item.behaviour == DIRECT_FACTS and v.passed
        )
    rows = []
    for item, answer, verdict in zip(suite.items, answers, verdicts, strict=True):
        counts = item.behaviour not in ABOUT_FACTS or direct_question_of(item.id) in known
        rows.append(
            Row(
                item=item.id,
                behaviour=item.behaviour,
                template=item.template,
                blind=item.blind,
                entity=item.entity,
                pair=item.pair,
                check=item.check,
                messages=[dict(message) for message in item.messages],
                answer=answer.text,
                finished=answer.finished,
                no_loop=judge(_NO_LOOP, answer).passed,
                passed=verdict.passed,
                score=verdict.score,
                reason=verdict.reason,
                counts=counts,
            )
        )
    return rows


def known_questions(rows: Sequence[Row]) -> frozenset[str]:
    """Ids of the direct questions that the base answered, read from the base's own rows."""
    return frozenset(row.item for row in rows if row.behaviour == DIRECT_FACTS and row.passed)

"""Datasets from people's judgments, in the formats trainers read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, aliased

from nestling.storage import Database, Generation, Judgment, RankedAnswer, Withdrawal
from nestling.workspace import atomic

Row = dict[str, Any]


def ranking_rows(database: Database) -> Iterator[Row]:
    """One row a decided vote, ranking or rewrite: ``{"prompt", "completions", "ranks"}``; rank 1 is the best,
    equal ranks a tie; ``all_bad`` is true where none is good.

    What a person wrote ranks above the answer that they wrote it for; no version gave it. "Both bad" says nothing
    about the order; it is in ``scalar_rows``.
    """
    ranks = {"a": [1, 2], "b": [2, 1], "tie": [1, 1]}
    for judgment, first, second in _votes(database):
        if judgment.value in ranks:
            yield _ranking_row(judgment, [first, second], ranks[judgment.value])
    for judgment in _newest_of(database, "ranking"):
        answers = [answer.generation for answer in judgment.answers]
        ranked = _ranking_row(judgment, answers, [answer.rank for answer in judgment.answers])
        yield ranked | {"all_bad": True} if judgment.value == "all_bad" else ranked
    for judgment, generation in _newest_about_one(database, "rewrite"):
        yield {
            "prompt": generation.messages,
            "completions": [_written(judgment), _turn(generation)],
            "ranks": [1, 2],
            "finished": [True, _ended(generation)],
            **_origin(judgment, generation),
            "versions": [None, generation.version],
        }


def preference_rows(database: Database) -> Iterator[Row]:
    """One row for each two answers of a ranking of which one is better: ``{"prompt", "chosen", "rejected"}``,
    as TRL reads it."""
    for row in ranking_rows(database):
        answers = sorted(
            zip(row["ranks"], row["completions"], row["versions"], strict=True), key=lambda answer: answer[0]
        )
        origin: Row = {key: row[key] for key in ("session", "judgment", "reason", "imported") if key in row}
        for (better, chosen, by), (worse, rejected, other) in itertools.combinations(answers, 2):
            if better < worse:
                pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
                yield pair | {"versions": [by, other]} | origin


def scalar_rows(database: Database) -> Iterator[Row]:
    """One row a judged answer: ``{"prompt", "completion", "label"}``, as KTO reads it.

    A thumb labels its answer; a score of 4 and 5 is true, of 1 and 2 false; "both bad" and "all bad" label theirs
    false; what a person wrote is true.
    """
    for judgment, generation in _newest_about_one(database, "thumb"):
        if judgment.value != "none":
            yield _scalar_row(judgment, generation, judgment.value == "up")
    for judgment, generation in _newest_about_one(database, "score"):
        if judgment.value != "3":
            yield _scalar_row(judgment, generation, judgment.value > "3")
    yield from bad_rows(database)
    for judgment, generation in _newest_about_one(database, "rewrite"):
        yield _scalar_row(judgment, generation, True) | {"completion": _written(judgment), "finished": True}
    for judgment, generation in _newest_about_one(database, "demonstration"):
        yield _scalar_row(judgment, generation, True)


def bad_rows(database: Database) -> Iterator[Row]:
    """One row an answer that was called bad together with those beside it, as ``scalar_rows`` has it."""
    for judgment, first, second in _votes(database):
        if judgment.value == "both_bad":
            yield _scalar_row(judgment, first, False)
            yield _scalar_row(judgment, second, False)
    for judgment in _newest_of(database, "ranking"):
        if judgment.value == "all_bad":
            for answer in judgment.answers:
                yield _scalar_row(judgment, answer.generation, False)


def score_rows(database: Database) -> Iterator[Row]:
    """One row an answer that was scored by itself: ``{"prompt", "completion", "score"}``, the score from 0 to 1.

    A thumb up is 1, one down 0; scores of 1 to 5 lie evenly between.
    """
    thumbs = {"up": 1.0, "down": 0.0}
    for judgment, generation in _newest_about_one(database, "thumb"):
        if judgment.value in thumbs:
            yield _scored_row(judgment, generation, thumbs[judgment.value])
    for judgment, generation in _newest_about_one(database, "score"):
        yield _scored_row(judgment, generation, (int(judgment.value) - 1) / 4)


def openai_preference_rows(database: Database) -> Iterator[Row]:
    """The preferences as OpenAI's fine-tuning takes them: ``{"input", "preferred_output", "non_preferred_output"}``."""
    for row in preference_rows(database):
        yield {
            "input": {"messages": row["prompt"], "tools": [], "parallel_tool_calls": True},
            "preferred_output": row["chosen"],
            "non_preferred_output": row["rejected"],
        }


def demonstration_rows(database: Database) -> Iterator[Row]:
    """One row an answer that a person wrote: ``{"messages"}``, the conversation with it at its end."""
    for judgment, generation in _newest_about_one(database, "rewrite"):
        yield {"messages": [*generation.messages, *_written(judgment)], **_origin(judgment, generation)}
    for judgment, generation in _newest_about_one(database, "demonstration"):
        yield {"messages": [*generation.messages, *_turn(generation)], **_origin(judgment, generation)}


def export(database: Database, folder: Path) -> dict[str, int]:
    """Write ``rankings``, ``preferences``, ``openai-preferences``, ``feedback``, ``scores`` and
    ``demonstrations.jsonl``; returns the rows in each.

    A person's newest judgment about the same answers counts, and none that was taken back for good. ``preferences`` are
    the rankings pair by pair, without ties, for what knows no ranks: train on one of the two. ``feedback`` has labels
    (KTO), ``scores`` numbers; ``demonstrations`` are for fine-tuning.

    Raises:
        WorkspaceError: one of the files is there already; nothing is written.
    """
    files = {
        "rankings.jsonl": ranking_rows(database),
        "preferences.jsonl": preference_rows(database),
        "openai-preferences.jsonl": openai_preference_rows(database),
        "feedback.jsonl": scalar_rows(database),
        "scores.jsonl": score_rows(database),
        "demonstrations.jsonl": demonstration_rows(database),
    }
    for name in files:
        atomic.refuse_existing(folder / name)
    counts = {}
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        atomic.write_text(folder / name, "".join(lines))
        counts[name] = len(lines)
    return counts


def _votes(database: Database) -> Iterator[tuple[Judgment, Generation, Generation]]:
    with database.read() as session:
        newest = current(session, "vote")
        first, second = aliased(Generation), aliased(Generation)
        query = (
            select(Judgment, first, second)
            .join(first, Judgment.generation_id == first.id)
            .join(second, Judgment.other_generation_id == second.id)
            .where(Judgment.kind == "vote")
            .order_by(Judgment.id)
        )
        for judgment, a, b in session.execute(query.execution_options(yield_per=500)):
            if judgment.id in newest:
                yield judgment, a, b


def _newest_of(database: Database, kind: str) -> Iterator[Judgment]:
    with database.read() as session:
        newest = current(session, kind)
        query = select(Judgment).where(Judgment.kind == kind).order_by(Judgment.id)
        for judgment in session.scalars(query.execution_options(yield_per=500)):
            if judgment.id in newest:
                yield judgment


def _newest_about_one(database: Database, kind: str) -> Iterator[tuple[Judgment, Generation]]:
    """Judgments of one answer, with it."""
    with database.read() as session:
        newest = current(session, kind)
        query = (
            select(Judgment, Generation)
            .join(Generation, Judgment.generation_id == Generation.id)
            .where(Judgment.kind == kind)
            .order_by(Judgment.id)
        )
        for judgment, generation in session.execute(query.execution_options(yield_per=500)):
            if judgment.id in newest:
                yield judgment, generation


def withdrawn(session: Session) -> set[int]:
    """Numbers of the judgments that were taken back for good, one by one or with all their person had said."""
    one_by_one = session.scalars(select(Withdrawal.judgment_id).where(Withdrawal.judgment_id.is_not(None)))
    said_before = or_(
        Judgment.id <= Withdrawal.last_judgment,
        and_(Withdrawal.last_judgment.is_(None), Judgment.created <= Withdrawal.created),
        Judgment.import_id.is_not(None),  # a file that comes later tells what was said before
    )
    of_people = session.scalars(
        select(Judgment.id).join(Withdrawal, Withdrawal.session_id == Judgment.session_id).where(said_before)
    )
    return {number for number in one_by_one if number is not None} | set(of_people)


def current(session: Session, kind: str) -> set[int]:
    """Numbers of the judgments that no later one by the same person about the same answers replaces, less those that
    were taken back for good."""
    query = select(
        Judgment.id, Judgment.session_id, Judgment.generation_id, Judgment.other_generation_id
    ).where(Judgment.kind == kind)
    ranked: dict[int, set[str | None]] = {}
    if kind == "ranking":
        for number, generation_id in session.execute(
            select(RankedAnswer.judgment_id, RankedAnswer.generation_id)
        ):
            ranked.setdefault(number, set()).add(generation_id)
    latest: dict[tuple[str | None, frozenset[str | None]], int] = {}
    anonymous: set[int] = set()
    for number, client, a, b in session.execute(query.order_by(Judgment.id)):
        if client is None:
            anonymous.add(number)  # nobody known said it, so nobody known took it back
        else:
            latest[client, frozenset(ranked.get(number, (a, b)))] = number
    return (anonymous | set(latest.values())) - withdrawn(session)


def _ranking_row(judgment: Judgment, generations: Sequence[Generation], ranks: Sequence[int]) -> Row:
    return {
        "prompt": generations[0].messages,
        "completions": [_turn(generation) for generation in generations],
        "ranks": list(ranks),
        "finished": [_ended(generation) for generation in generations],
        **_origin(judgment, *generations),
    }


def _scalar_row(judgment: Judgment, generation: Generation, label: bool) -> Row:
    return {
        "prompt": generation.messages,
        "completion": _turn(generation),
        "label": label,
        "finished": _ended(generation),
        **_origin(judgment, generation),
    }


def _scored_row(judgment: Judgment, generation: Generation, score: float) -> Row:
    row = _scalar_row(judgment, generation, False)
    del row["label"]
    return row | {"score": score}


def _ended(generation: Generation) -> bool:
    """Whether the answer ended by itself: one that was cut, or ended at the asker's own words, must not teach where to
    end."""
    return generation.finish_reason == "stop" and not generation.sampling.get("stop")


def _turn(generation: Generation) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": generation.answer}]


def _written(judgment: Judgment) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": judgment.text or ""}]


def _origin(judgment: Judgment, *generations: Generation) -> Row:
    return {
        "versions": [generation.version for generation in generations],
        "session": judgment.session_id,
        "judgment": judgment.id,
        "at": judgment.created.isoformat(timespec="seconds"),
        **({"reason": judgment.reason} if judgment.reason else {}),
        **({"imported": judgment.file.digest[:12]} if judgment.file else {}),
    }

"""Datasets from people's judgments, in the formats trainers read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from nestling.storage import Database, Generation, Judgment
from nestling.workspace import atomic

Row = dict[str, Any]


def ranking_rows(database: Database) -> Iterator[Row]:
    """One row a decided vote: ``{"prompt", "completions", "ranks"}`` with rank 1 the best, equal ranks a tie.

    "both_bad" says nothing about the order; it is in ``scalar_rows``.
    """
    ranks = {"a": [1, 2], "b": [2, 1], "tie": [1, 1]}
    for judgment, first, second in _votes(database):
        if judgment.value in ranks:
            yield {
                "prompt": first.messages,
                "completions": [_turn(first), _turn(second)],
                "ranks": ranks[judgment.value],
                "finished": [_ended(first), _ended(second)],
                **_origin(judgment, first, second),
            }


def preference_rows(database: Database) -> Iterator[Row]:
    """One row a vote that has a winner: ``{"prompt", "chosen", "rejected"}``, as TRL reads it."""
    for judgment, first, second in _votes(database):
        if judgment.value in ("a", "b"):
            chosen, rejected = (first, second) if judgment.value == "a" else (second, first)
            yield {
                "prompt": first.messages,
                "chosen": _turn(chosen),
                "rejected": _turn(rejected),
                **_origin(judgment, chosen, rejected),
            }


def scalar_rows(database: Database) -> Iterator[Row]:
    """One row a judged answer: ``{"prompt", "completion", "label"}``, as KTO reads it.

    A thumb labels its answer; "both bad" labels both of its answers false.
    """
    for judgment, generation in _thumbs(database):
        if judgment.value != "none":
            yield _scalar_row(judgment, generation, judgment.value == "up")
    for judgment, first, second in _votes(database):
        if judgment.value == "both_bad":
            yield _scalar_row(judgment, first, False)
            yield _scalar_row(judgment, second, False)


def export(database: Database, folder: Path) -> dict[str, int]:
    """Write ``rankings.jsonl``, ``preferences.jsonl`` and ``feedback.jsonl``; returns the rows in each.

    A session's newest judgment about the same answers counts. ``preferences`` are the rankings without ties,
    for tools that know no ranks: train on one of the two. ``feedback`` is for KTO elsewhere; nothing here reads it.

    Raises:
        WorkspaceError: one of the files is there already; nothing is written.
    """
    files = {
        "rankings.jsonl": ranking_rows(database),
        "preferences.jsonl": preference_rows(database),
        "feedback.jsonl": scalar_rows(database),
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
        newest = _newest(session, "vote")
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


def _thumbs(database: Database) -> Iterator[tuple[Judgment, Generation]]:
    with database.read() as session:
        newest = _newest(session, "thumb")
        query = (
            select(Judgment, Generation)
            .join(Generation, Judgment.generation_id == Generation.id)
            .where(Judgment.kind == "thumb")
            .order_by(Judgment.id)
        )
        for judgment, generation in session.execute(query.execution_options(yield_per=500)):
            if judgment.id in newest:
                yield judgment, generation


def _newest(session: Session, kind: str) -> set[int]:
    """Numbers of the judgments no later one by the same session about the same answers replaces."""
    query = select(
        Judgment.id, Judgment.session_id, Judgment.generation_id, Judgment.other_generation_id
    ).where(Judgment.kind == kind)
    latest: dict[tuple[str | None, frozenset[str | None]], int] = {}
    anonymous: set[int] = set()
    for number, client, a, b in session.execute(query.order_by(Judgment.id)):
        if client is None:
            anonymous.add(number)  # nobody known said it, so nobody known took it back
        else:
            latest[client, frozenset((a, b))] = number
    return anonymous | set(latest.values())


def _scalar_row(judgment: Judgment, generation: Generation, label: bool) -> Row:
    return {
        "prompt": generation.messages,
        "completion": _turn(generation),
        "label": label,
        **_origin(judgment, generation),
    }


def _ended(generation: Generation) -> bool:
    """Whether the answer ended by itself: one that was cut must not teach where to end."""
    return generation.finish_reason == "stop"


def _turn(generation: Generation) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": generation.answer}]


def _origin(judgment: Judgment, *generations: Generation) -> Row:
    return {
        "versions": [generation.version for generation in generations],
        "session": judgment.session_id,
        "judgment": judgment.id,
        **({"reason": judgment.reason} if judgment.reason else {}),
    }

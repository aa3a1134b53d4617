"""A row in our, TRL's or OpenAI's shape as the judgment it says: of which answers, by whom and when.

| row | becomes |
|---|---|
| ranking | a ranking |
| preference, or a ranking of two, whose better answer no version gave (``versions`` begins with null) | a rewrite |
| preference | a vote |
| answer with a label | a thumb |
| answer with a score from 0 to 1 | the nearest of five scores |
| conversation, or a prompt with its answer | a demonstration: of its last answer |
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from nestling.data.foreign import translated
from nestling.data.formats import Feedback, Preference, Ranking, as_row
from nestling.errors import DataError
from nestling.feedback.open_webui import is_rating, rated
from nestling.feedback.said import ForeignAnswer, LeftOut, Said
from nestling.text.messages import require_text, validate_messages

_RATERS = ("session", "user", "user_id", "annotator", "annotator_id", "rater")
WRITTEN = "written"
"""Stands for a version where a person wrote the answer."""


def said_in(value: Any, where: str) -> list[Said]:
    """The judgments of one row.

    Raises:
        LeftOut: it says nothing.
        DataError: naming ``where``: a missing or wrong field, or a kind of row that is no judgment.
    """
    if isinstance(value, dict) and is_rating(value):
        return rated(value, where)
    if isinstance(value, dict):
        value, _ = translated(value, where)
        if "chosen" in value and value["chosen"] == value.get("rejected"):
            raise LeftOut("both answers are the same")
        if "messages" in value:
            return [_demonstration(value, where)]
    row, _ = as_row(value, where)
    names = _versions(value, where)
    told = _told(value, where)
    if isinstance(row, Feedback):
        answers = _answers([row.completion], names, [row.finished])
        if row.label is not None:
            return [Said("thumb", row.prompt, answers, "up" if row.label else "down", **told)]
        return [Said("score", row.prompt, answers, str(1 + round(4 * (row.score or 0.0))), **told)]
    if isinstance(row, Ranking):
        better, ranks = list(row.completions), _dense(row.ranks)
        answers = _answers(better, names, row.finished)
        bad = "all_bad" if value.get("all_bad") is True else ""
        kind = Said("ranking", row.prompt, answers, bad, ranks=ranks, **told)
    elif isinstance(row, Preference):
        better, ranks = [row.chosen, row.rejected], [1, 2]
        answers = _answers(better, names, ())
        kind = Said("vote", row.prompt, answers, "a", **told)
    else:
        raise DataError(
            f"a {row.kind} says nothing of an answer.", where=where,
            remedy="Import preferences, rankings, labels, scores or conversations.",
        )  # fmt: skip
    written = better[0].strip()
    if ranks == [1, 2] and names[:1] == [None] and written and written != better[1].strip():
        return [Said("rewrite", row.prompt, answers[1:], text=written, **told)]
    return [kind]


def _demonstration(value: dict[str, Any], where: str) -> Said:
    turns = validate_messages(value["messages"], where, greeting=True)
    prompt = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    last = prompt.pop()
    if last["role"] != "assistant" or not prompt or prompt[-1]["role"] != "user":
        raise DataError(
            "'messages' must end with a user turn and its answer.", where=where,
            remedy="Drop what stands after the last answer.",
        )  # fmt: skip
    if not last["content"].strip():
        raise DataError("an empty answer.", where=where, remedy="Write one, or drop the row.")
    return Said("demonstration", prompt, [ForeignAnswer.of(last["content"], WRITTEN)], **_told(value, where))  # type: ignore[arg-type]


def _answers(texts: Sequence[str], names: Sequence[Any], finished: Sequence[bool]) -> list[ForeignAnswer]:
    names = names if len(names) == len(texts) else [None] * len(texts)
    ended = finished or [True] * len(texts)
    return [ForeignAnswer.of(*answer) for answer in zip(texts, names, ended, strict=True)]


def _versions(value: dict[str, Any], where: str) -> list[Any]:
    names = value.get("versions") or []
    if not isinstance(names, list) or any(not isinstance(name, str | None) for name in names):
        raise DataError(
            "'versions' must be a list of names.", where=where,
            remedy="Give one name an answer, null for what a person wrote, or leave it out.",
        )  # fmt: skip
    return [name if name is None else require_text(name, "versions", where) for name in names]


def _told(value: dict[str, Any], where: str) -> dict[str, Any]:
    """Who said it, why, and when."""
    rater = next((str(value[name]) for name in _RATERS if isinstance(value.get(name), str | int)), "")
    reason = value.get("reason") or ""
    return {
        "rater": require_text(rater, "session", where),
        "reason": require_text(reason, "reason", where),
        "at": moment(value["at"], "at", where) if value.get("at") else None,
    }


def moment(value: Any, name: str, where: str) -> datetime:
    """A moment as text (ISO 8601; UTC where it names no zone)."""
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{name!r} is no moment: {value!r}.",
            where=where,
            remedy="Write 2026-11-30T12:00:00+00:00, or leave it out.",
        ) from error


def _dense(ranks: Sequence[int]) -> list[int]:
    """The same order without gaps: 1, 3, 3 becomes 1, 2, 2."""
    order = sorted(set(ranks))
    return [order.index(rank) + 1 for rank in ranks]

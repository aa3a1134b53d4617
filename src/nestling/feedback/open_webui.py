"""Ratings as Open WebUI's administrators export them (Evaluations, Feedback: a JSON list with the rated chats).

``data`` holds the rating (1, -1, in its arena 0 for a draw) and the model, ``meta.message_id`` names the rated turn,
``snapshot.chat`` is the chat as it was: a tree of turns by ``parentId``. In the arena, where models answered side by
side unnamed, a rating says which is better: it becomes a vote beside each other answer. Elsewhere it is a thumb.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nestling.errors import DataError
from nestling.feedback.said import ForeignAnswer, LeftOut, Said
from nestling.text.messages import Message, require_text, validate_messages

_THOUGHTS = re.compile(r"<details type=\"[^\"]*\"[^>]*>.*?</details>\s*", re.DOTALL)
"""What a model thought or called before it answered, folded away in the page."""
_RATINGS = {"1": 1, "-1": -1, "0": 0}


def is_rating(value: Mapping[str, Any]) -> bool:
    """Whether a row is one of Open WebUI's."""
    return isinstance(value.get("data"), dict) and ("snapshot" in value or "meta" in value)


def rated(value: Mapping[str, Any], where: str) -> list[Said]:
    """The judgments of one rating.

    Raises:
        LeftOut: no rating, or one of what text does not tell.
        DataError: naming ``where``: a missing or wrong field.
    """
    data = value["data"]
    rating = _RATINGS.get(str(data.get("rating")))
    if value.get("type", "rating") != "rating" or rating is None:
        raise LeftOut("there is no rating")
    meta = _part(value, "meta", where)
    turns = _turns(_part(value, "snapshot", where), where)
    key = require_text(meta.get("message_id"), "meta.message_id", where)
    turn = _at(turns, key, "meta.message_id", where)
    if turn.get("role") != "assistant":
        raise DataError(
            "'meta.message_id' names no answer.", where=where, remedy="Drop the row: only answers are judged."
        )
    prompt = _prompt(turns, turn, _part(value, "snapshot", where), where)
    told: dict[str, Any] = {
        "rater": require_text(value.get("user_id") or "", "user_id", where),
        "reason": ": ".join(
            require_text(data[name], f"data.{name}", where)
            for name in ("reason", "comment")
            if data.get(name)
        ),
        "at": _moment(value.get("updated_at"), where),
    }
    answer = _answer(turn, data.get("model_id"), where)
    if meta.get("arena") and (others := _others(turns, turn, where)):
        winner = {1: "a", -1: "b", 0: "tie"}[rating]
        different = [other for other in others if other.text != answer.text]
        if not different:
            raise LeftOut("both answers are the same")
        return [Said("vote", prompt, [answer, other], winner, blinded=True, **told) for other in different]
    if rating == 0:
        raise LeftOut("there is no rating")
    return [Said("thumb", prompt, [answer], "up" if rating > 0 else "down", **told)]


def _part(value: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    part = value.get(name)
    if not isinstance(part, dict) or not part:
        raise DataError(
            f"{name!r} is missing.", where=where,
            remedy="Take an administrator's export; what is shared with the community has no chats.",
        )  # fmt: skip
    return part


def _chat(snapshot: Mapping[str, Any]) -> Mapping[str, Any]:
    """The chat in its envelope, or without one."""
    outer = snapshot.get("chat")
    inner = outer.get("chat", outer) if isinstance(outer, dict) else None
    return inner if isinstance(inner, dict) else {}


def _turns(snapshot: Mapping[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    """All turns by their ids."""
    chat = _chat(snapshot)
    history = chat.get("history")
    turns = history.get("messages") if isinstance(history, dict) else None
    listed = turns.values() if isinstance(turns, dict) else chat.get("messages")
    found: dict[str, Mapping[str, Any]] = {
        str(t["id"]): t for t in listed or () if isinstance(t, dict) and t.get("id")
    }
    if not found:
        raise DataError(
            "'snapshot.chat' holds no turns.", where=where,
            remedy="Take an administrator's export; what is shared with the community has no chats.",
        )  # fmt: skip
    return found


def _at(turns: Mapping[str, Mapping[str, Any]], key: str, name: str, where: str) -> Mapping[str, Any]:
    if key not in turns:
        what = f"{name!r} names a turn that 'snapshot.chat' does not hold: {key!r}."
        raise DataError(what, where=where, remedy="Drop the row: the turn was deleted before it was rated.")
    return turns[key]


def _prompt(
    turns: Mapping[str, Mapping[str, Any]], turn: Mapping[str, Any], snapshot: Mapping[str, Any], where: str
) -> list[Message]:
    """What stands before a turn, back to the root, with the chat's system text."""
    path: list[Mapping[str, Any]] = []
    while parent := turn.get("parentId"):
        turn = _at(turns, str(parent), "parentId", where)
        path.append(turn)
        if len(path) > len(turns):
            raise DataError("'parentId' goes in a circle.", where=where, remedy="Drop the row.")
    if any(one.get("files") for one in path):
        raise LeftOut("it was asked with files, which an answer cannot be judged without")
    said = [{"role": one.get("role"), "content": _text(one, where)} for one in reversed(path)]
    chat = _chat(snapshot)
    params = chat.get("params")
    system = (params.get("system") if isinstance(params, dict) else None) or chat.get("system")
    if isinstance(system, str) and system.strip():
        said = [{"role": "system", "content": system}, *said]
    prompt = validate_messages(said, f"{where}, snapshot.chat", greeting=True)
    if prompt[-1]["role"] != "user":
        raise DataError(
            "nobody asked for the rated answer.", where=where, remedy="Drop the row: it has no prompt."
        )
    return prompt


def _text(turn: Mapping[str, Any], where: str) -> str:
    content = turn.get("content")
    text = require_text(content, "snapshot.chat: content", where)
    return _THOUGHTS.sub("", text) if turn.get("role") == "assistant" else text


def _answer(turn: Mapping[str, Any], model: Any, where: str) -> ForeignAnswer:
    version = model or turn.get("selectedModelId") or turn.get("model")
    if version is not None:
        require_text(version, "data.model_id", where)
    return ForeignAnswer.of(_text(turn, where), version, turn.get("done") is not False)


def _others(
    turns: Mapping[str, Mapping[str, Any]], turn: Mapping[str, Any], where: str
) -> list[ForeignAnswer]:
    """The other answers to the same question, without those that failed."""
    beside = [t for t in turns.values() if t.get("parentId") == turn.get("parentId") and t is not turn]
    good = [t for t in beside if t.get("role") == "assistant" and not t.get("error") and t.get("content")]
    return [_answer(other, None, where) for other in good]


def _moment(value: Any, where: str) -> datetime | None:
    """A moment in seconds since 1970; milliseconds and finer are told by their size."""
    if value is None:
        return None
    try:
        seconds = float(value)
        if not math.isfinite(seconds):
            raise ValueError("not a number of seconds")
        while seconds > 1e11:
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        what = f"'updated_at' is no moment: {value!r}."
        raise DataError(what, where=where, remedy="Write seconds since 1970, or leave it out.") from error

"""Rows in the shapes that other programs write, told by their fields and put into ours (``formats``).

| shape | fields | becomes |
|---|---|---|
| ShareGPT | ``conversations`` of ``{"from", "value"}``, maybe ``system`` | conversation |
| Alpaca | ``instruction``, ``output``, maybe ``input``, ``system``, ``history`` | conversation |
| Dolly | ``instruction``, ``response``, maybe ``context`` | conversation |
| question and answer | ``question`` and ``answer``, or ``prompt`` and ``response`` | conversation |
| TRL prompt-completion | ``prompt``, ``completion`` | conversation |
| TRL preference | ``chosen``, ``rejected``: whole conversations, with or without ``prompt`` | preference |
| TRL preference, plain | ``chosen``, ``rejected``: whole texts, without ``prompt`` | preference |
| OpenAI preference | ``input``, ``preferred_output``, ``non_preferred_output`` | preference |

Content in parts (``[{"type": "text", "text": ...}]``), as OpenAI's API takes it, becomes text in every shape.
Nothing is judged here: what comes out is validated like a row of ours.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from nestling.errors import DataError

Value = dict[str, Any]

_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip

_OURS = {"messages", "completions", "check"}
"""Fields that no other shape has."""

_QUESTIONS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
)
"""Fields of one exchange: what is asked, and what is answered."""


def translated(value: Value, where: str) -> tuple[Value, str]:
    """The row with our fields, and the name of its shape; ``""`` where it is ours (or nobody's) already.

    Raises:
        DataError: naming ``where``: the shape is known and says something that our rows cannot.
    """
    theirs = ((name, convert) for name, tells, convert in _SHAPES if tells(value))
    shape, convert = ("", dict) if _OURS & set(value) else next(theirs, ("", dict))
    row = {key: _plain(entry, where) for key, entry in convert(value).items()}
    kept = {"category": value["category"]} if shape and "category" in value else {}
    return row | kept, shape


def _sharegpt(value: Value) -> Value:
    turns = value["conversations"]
    if not isinstance(turns, list):
        return {"messages": turns}
    return {"messages": _system(value) + [_said(turn) for turn in turns]}


def _said(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    speaker, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    return {"role": _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker, "content": said}


def _exchange(value: Value) -> Value:
    asked, answered = next(pair for pair in _QUESTIONS if set(pair) <= set(value))
    question, answer = value[asked], value[answered]
    more = value.get("input") or value.get("context")
    if isinstance(question, str) and isinstance(more, str) and asked == "instruction":
        question = f"{question}\n\n{more}"
    history = value.get("history") or []
    exchanges = history if isinstance(history, list) else [history]
    earlier = itertools.chain.from_iterable(map(_pair, exchanges))
    turns = [_turn("assistant" if i % 2 else "user", text) for i, text in enumerate(earlier)]
    ask = question if isinstance(question, list) else [_turn("user", question)]
    reply = answer if isinstance(answer, list) else [_turn("assistant", answer)]
    return {"messages": [*_system(value), *turns, *ask, *reply]}


def _whole_conversations(value: Value) -> Value:
    """TRL's implicit prompt: the turns that both conversations begin with."""
    chosen, rejected = value["chosen"], value["rejected"]
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    common = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def _whole_texts(value: Value) -> Value:
    """TRL's implicit prompt of plain text: what both texts begin with, up to the last whole word. Texts that are told
    as "Human: ... Assistant: ..." are conversations."""
    told = [_told_turns(value[name]) for name in ("chosen", "rejected")]
    if all(told):
        return _whole_conversations({"chosen": told[0], "rejected": told[1]})
    chosen, rejected = value["chosen"], value["rejected"]
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    common = len(list(alike))
    while common and not chosen[common - 1].isspace():
        common -= 1
    prompt = {"prompt": chosen[:common].rstrip()} if chosen[:common].strip() else {}
    return prompt | {"chosen": chosen[common:], "rejected": rejected[common:]}


def _told_turns(text: str) -> list[Value]:
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    if before.strip() or len(parts) < 4:
        return []
    speakers = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [_turn(speakers[speaker], said.strip()) for speaker, said in pairs]


def _openai_preference(value: Value) -> Value:
    given = value["input"]
    prompt = given.get("messages") if isinstance(given, dict) else given
    return {"prompt": prompt, "chosen": value["preferred_output"], "rejected": value["non_preferred_output"]}


def _has(*fields: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: all(field in value for field in fields)


def _is_exchange(value: Value) -> bool:
    # a label or a score makes it one answer that was judged
    return not {"label", "score"} & set(value) and any(set(pair) <= set(value) for pair in _QUESTIONS)


def _is_whole_conversations(value: Value) -> bool:
    return all(isinstance(value.get(name), list) and len(value[name]) > 1 for name in ("chosen", "rejected"))


def _is_whole_texts(value: Value) -> bool:
    return "prompt" not in value and all(isinstance(value.get(name), str) for name in ("chosen", "rejected"))


_SHAPES: tuple[tuple[str, Callable[[Value], bool], Callable[[Value], Value]], ...] = (
    ("ShareGPT", _has("conversations"), _sharegpt),
    ("OpenAI preference", _has("input", "preferred_output", "non_preferred_output"), _openai_preference),
    ("TRL preference", _is_whole_conversations, _whole_conversations),
    ("TRL preference", _is_whole_texts, _whole_texts),
    ("Alpaca", lambda value: "instruction" in value and _is_exchange(value), _exchange),
    ("question and answer", _is_exchange, _exchange),
)


def _turn(role: str, content: Any) -> Value:
    return {"role": role, "content": content}


def _system(value: Value) -> list[Value]:
    return [_turn("system", value["system"])] if value.get("system") else []


def _pair(exchange: Any) -> list[Any]:
    return exchange if isinstance(exchange, list) and len(exchange) == 2 else [exchange]


def _plain(entry: Any, where: str) -> Any:
    """Turns with text instead of content in parts; everything else as it is."""
    if not isinstance(entry, list):
        return entry
    return [_plain_turn(turn, f"{where}, turn {n}") for n, turn in enumerate(entry, 1)]


def _plain_turn(turn: Any, where: str) -> Any:
    if not (isinstance(turn, dict) and "role" in turn):
        return turn
    if turn.get("weight") == 0 and turn["role"] == "assistant":
        raise DataError(
            "an answer of weight 0 is one not to learn from.", where=where,
            remedy="Every answer of a conversation is learnt here: drop the turns up to it, or the row.",
        )  # fmt: skip
    parts = turn.get("content")
    if not isinstance(parts, list):
        return turn
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise DataError(
            "a part of the content is not text.", where=where, remedy="Only text can be learnt: drop the row."
        )
    return turn | {"content": "".join(map(str, texts))}

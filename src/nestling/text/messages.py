"""A conversation: a list of ``{"role", "content"}`` turns, as OpenAI and TRL write them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, cast

from nestling.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    role: Role
    content: str


def require_text(value: Any, name: str, where: str) -> str:
    """Return ``value`` if it is Unicode text.

    JSON can spell half of a surrogate pair, which no encoding can write and no tokenizer can read; the chat
    template code also counts on such code points never being in a conversation.

    Raises:
        DataError: naming ``where`` and the field ``name``.
    """
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be text.", where=where, remedy="Write it in quotation marks.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name!r} holds half a surrogate pair (U+{ord(value[error.start]):04X}).",
            where=where,
            remedy="Write whole Unicode characters.",
        ) from None
    return value


def joined_turns(messages: Sequence[Message]) -> list[Message]:
    """Neighbouring turns of one role as one turn, with an empty line between them."""
    runs = itertools.groupby(messages, key=lambda m: m["role"])
    return [Message(role=role, content="\n\n".join(m["content"] for m in run)) for role, run in runs]


def validate_messages(value: Any, where: str, *, greeting: bool = False) -> list[Message]:
    """Check untrusted JSON and return it as messages.

    A conversation may open with one system turn; after it user and assistant alternate, user first, or with
    ``greeting`` either.

    Raises:
        DataError: naming ``where`` and the turn (counted from 1) that is wrong.
    """
    if not isinstance(value, list) or not value:
        raise DataError(
            "'messages' must be a non-empty list.", where=where, remedy='Write {"messages": [...]}.'
        )
    previous: str | None = None
    for number, turn in enumerate(value, 1):
        place = f"{where}, turn {number}"
        if not isinstance(turn, dict):
            raise DataError(
                f"a turn must be an object, not {type(turn).__name__}.",
                where=place,
                remedy='Write {"role": "user", "content": "..."}.',
            )
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise DataError(f"unknown role {role!r}.", where=place, remedy=f"Use one of {', '.join(ROLES)}.")
        require_text(content, "content", place)
        first = ("user", "assistant") if greeting else ("user",)
        expected = {
            None: ("system", *first),
            "system": first,
            "user": ("assistant",),
            "assistant": ("user",),
        }
        if role not in expected[previous]:
            raise DataError(
                f"{role} cannot follow {previous or 'nothing'}.",
                where=place,
                remedy=f"Expected {' or '.join(expected[previous])}.",
            )
        previous = role
    return cast(list[Message], value)


def last_user_text(messages: Sequence[Message]) -> str:
    """The content of the last user turn, or "" when there is none."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")

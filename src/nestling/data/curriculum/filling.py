"""Slots: ``{name}`` in a template is replaced by a field, once, with nothing evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nestling.errors import DataError

_SLOT = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)\}")


def fill(text: str, fields: Mapping[str, Any], where: str) -> str:
    """Replace every ``{slot}`` of ``text``; what fields bring in is never looked at again.

    A list gives its first entry. ``{Claim}`` gives ``claim`` with its first letter upper-cased.

    Raises:
        DataError: naming ``where`` and a slot that no field fills.
    """
    return _SLOT.sub(lambda match: _as_text(_look_up(match[1], fields, where)), text)


def fill_value(value: Any, fields: Mapping[str, Any], where: str) -> Any:
    """Fill all strings inside lists and mappings; a string that is just one slot becomes the field itself."""
    if isinstance(value, str):
        whole = _SLOT.fullmatch(value)
        return _look_up(whole[1], fields, where) if whole else fill(value, fields, where)
    if isinstance(value, list):
        return [fill_value(entry, fields, where) for entry in value]
    if isinstance(value, dict):
        return {key: fill_value(entry, fields, where) for key, entry in value.items()}
    return value


def _look_up(name: str, fields: Mapping[str, Any], where: str) -> Any:
    if name in fields:
        return fields[name]
    lowered = name[0].lower() + name[1:]
    if lowered in fields:
        text = _as_text(fields[lowered])
        return text[:1].upper() + text[1:]
    raise DataError(
        f"nothing fills the slot {{{name}}}.", where=where, remedy=f"Fields: {', '.join(fields)}."
    )


def _as_text(value: Any) -> str:
    return str(value[0]) if isinstance(value, list) else str(value)

"""Command-line options made from configuration classes, so that each setting is documented and checked in one place."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from rich.markup import escape
from rich.table import Column, Table

from nestling.config import Config, parse

F = TypeVar("F", bound=Callable[..., Any])
_NAMES = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    tuple: "list",
    dict: "mapping",
}
_SCALARS: dict[Any, Any] = {int: int, float: float, str: str, bool: bool}


def from_config(kind: type[Config], *skip: str, recipe: bool = True) -> Callable[[F], F]:
    """Decorate a command with one option per field of ``kind``; values arrive as keyword arguments, None if unset.

    Nested sections become ``--section.key``. ``recipe``: whether a recipe's values come before the defaults.
    """

    def decorate(command: F) -> F:
        for name, field in reversed(_flat(kind)):
            if name in skip:
                continue
            command = click.option(
                "--" + name.replace("_", "-"),
                _argument(name),
                type=_click_type(field.annotation),
                multiple=get_origin(field.annotation) is tuple,
                default=None,
                help=_help(field, recipe),
            )(command)
        return command

    return decorate


def to_config(kind: type[Config], values: dict[str, Any], base: Config | None = None) -> Any:
    """The configuration from given options on top of ``base``'s (or the class's) values.

    Raises:
        ConfigError: an impossible value, by name.
    """
    merged: dict[str, Any] = base.model_dump() if base is not None else {}
    for name, _ in _flat(kind):
        value = values.get(_argument(name))
        if value is None or value == ():
            continue
        section = merged
        *parents, last = name.split(".")
        for parent in parents:
            section[parent] = section.get(parent) or {}
            section = section[parent]
        section[last] = value
    return parse(kind, merged, "options")


def _argument(name: str) -> str:
    return name.replace(".", "__")


def settings_of(kind: type[Config], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """Every key that a recipe or ``--set`` may hold, sections taken apart: ``ppo.lora.rank``."""
    fields: list[tuple[str, FieldInfo]] = []
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        fields += settings_of(inner, f"{prefix}{name}.") if inner else [(prefix + name, field)]
    return fields


def settings_table(kind: type[Config]) -> Table:
    """``settings_of``, for the terminal."""
    narrow = (Column(title, max_width=20, overflow="fold") for title in ("what it takes", "default"))
    table = Table(Column("key", no_wrap=True), *narrow, "what it does", box=None)
    for name, field in settings_of(kind):
        table.add_row(name, escape(_takes(field)), escape(_default(field)), escape(field.description or ""))
    return table


def _flat(kind: type[Config]) -> list[tuple[str, FieldInfo]]:
    """What a command line can give: no mappings."""
    return [(name, field) for name, field in settings_of(kind) if _click_type(field.annotation) is not None]


def _options(annotation: Any) -> list[Any]:
    """The members of a union without None; a plain annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [a for a in get_args(annotation) if a is not type(None)]
    return [annotation]


def _section(annotation: Any) -> type[Config] | None:
    found = [a for a in _options(annotation) if isinstance(a, type) and issubclass(a, Config)]
    return found[0] if found else None


def _click_type(annotation: Any) -> Any:
    """click's type for a scalar field or a tuple of them (an option that may be given often); None for what only a
    recipe can hold (mappings)."""
    if get_origin(annotation) is tuple:
        return _click_type(get_args(annotation)[0])
    for option in _options(annotation):
        if get_origin(option) is Literal:
            return click.Choice([str(value) for value in get_args(option)])
        if option in _SCALARS:
            return _SCALARS[option]
    return None


def _help(field: FieldInfo, recipe: bool) -> str:
    before = "what the recipe says, else " if recipe else ""
    return f"{field.description or ''}  [default: {before}{_default(field)}]"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else str(value)


def _takes(field: FieldInfo) -> str:
    """The kind of value and its bounds: "number > 0"."""
    kinds = []
    for option in _options(field.annotation):
        if get_origin(option) is Literal:
            kinds += [str(value) for value in get_args(option)]
        else:
            kinds.append(_NAMES.get(get_origin(option) or option, "text"))
    bounds = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(limit, name, None) is not None
    ]
    return " ".join([" or ".join(dict.fromkeys(kinds)), *bounds])

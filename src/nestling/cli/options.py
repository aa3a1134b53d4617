"""Command-line options made from configuration classes, so that each setting is documented and checked in one place."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from nestling.config import Config, parse

F = TypeVar("F", bound=Callable[..., Any])
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


def _flat(kind: type[Config], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    fields: list[tuple[str, FieldInfo]] = []
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            fields += _flat(inner, f"{prefix}{name}.")
        elif _click_type(field.annotation) is not None:
            fields.append((prefix + name, field))
    return fields


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
    default = field.get_default(call_default_factory=True)
    shown = "none" if default is None else default
    return f"{field.description or ''}  [default: {'what the recipe says, else ' if recipe else ''}{shown}]"

"""Every check by its name, and the verdict a spec gives on an answer."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from nestling.checks import chinese, constraints, held_out, identity, loops, premise, refusal, relevance
from nestling.checks.verdict import Answer, Check, Verdict
from nestling.errors import DataError

_REWARDED: dict[str, type[Check]] = {
    **refusal.CHECKS,
    **relevance.CHECKS,
    **premise.CHECKS,
    **identity.CHECKS,
    **loops.CHECKS,
    **constraints.CHECKS,
    **chinese.CHECKS,
}
HELD_OUT = frozenset(held_out.CHECKS)
"""Names of the checks that never reward PPO nor label rankings."""

_CHECKS = _REWARDED | held_out.CHECKS


def names() -> tuple[str, ...]:
    """The names of all checks, held-out ones included, in alphabetical order."""
    return tuple(sorted(_CHECKS))


def validate(spec: Any, where: str | None = None) -> None:
    """Make sure that ``spec`` is ``{"name": NAME, **arguments}`` or ``{"all": [spec, ...]}``.

    Raises:
        DataError: naming the unknown name or argument and what is allowed, at ``where``.
    """
    _build(spec, where)


def is_held_out(spec: dict[str, Any]) -> bool:
    """True when any part of ``spec`` is a held-out check.

    Raises:
        DataError: when ``spec`` is not valid.
    """
    _build(spec, None)
    return any(map(is_held_out, spec["all"])) if "all" in spec else spec["name"] in HELD_OUT


def judge(spec: dict[str, Any], answer: Answer) -> Verdict:
    """The verdict of ``spec`` on ``answer``; a list of specs passes when each of them does.

    Raises:
        DataError: when ``spec`` is not valid, see ``validate``.
    """
    verdicts = [check.judge(answer) for check in _build(spec, None)]
    failed = [v for v in verdicts if not v.passed]
    score = sum(v.score for v in verdicts) / len(verdicts)
    return Verdict(not failed, score, "; ".join(v.reason for v in failed or verdicts))


def _build(spec: Any, where: str | None) -> list[Check]:
    """The checks of ``spec``, in order."""
    if not isinstance(spec, dict):
        raise DataError(f"a check must be an object, not {type(spec).__name__}.", where=where, remedy=_SHAPE)
    if "all" in spec:
        if set(spec) != {"all"} or not isinstance(spec["all"], list) or not spec["all"]:
            raise DataError(
                "'all' must stand alone and hold a non-empty list of checks.", where=where, remedy=_SHAPE
            )
        return [check for part in spec["all"] for check in _build(part, where)]
    name = spec.get("name")
    if not isinstance(name, str) or name not in _CHECKS:
        raise DataError(f"unknown check {name!r}.", where=where, remedy=f"Use one of {', '.join(names())}.")
    kind = _CHECKS[name]
    try:
        return [kind(**{key: value for key, value in spec.items() if key != "name"})]
    except ValidationError as error:
        raise DataError(_explain(name, error), where=where, remedy=_arguments(name)) from None


_SHAPE = 'Write {"name": NAME, ...arguments} or {"all": [check, ...]}.'


def _explain(name: str, error: ValidationError) -> str:
    first = error.errors()[0]
    argument = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"check {name!r} takes no argument {argument!r}."
    if first["type"] == "missing":
        return f"check {name!r} needs the argument {argument!r}."
    return f"check {name!r}, argument {argument!r}: {first['msg']} (got {first['input']!r})."


def _arguments(name: str) -> str:
    fields = _CHECKS[name].model_fields
    listed = [f"'{key}'" + ("" if field.is_required() else " (optional)") for key, field in fields.items()]
    return f"Its arguments are {', '.join(listed)}." if listed else "It takes no arguments."

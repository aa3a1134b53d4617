"""What every configuration class shares: unknown keys refused by name, values validated, errors in plain words."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nestling.errors import ConfigError


class Config(BaseModel):
    """Base of all settings. Fields carry their documentation in ``Field(description=...)``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )


C = TypeVar("C", bound=Config)


def parse(kind: type[C], values: dict[str, Any], where: str) -> C:
    """Validate untrusted values.

    Raises:
        ConfigError: naming the place, the key, its value, and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_explain(kind, problem) for problem in error.errors()), where=where
        ) from None


def _explain(kind: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: Any = kind
        for part in problem["loc"][:-1]:
            field = getattr(section, "model_fields", {}).get(str(part))
            section = _config_in(field.annotation) if field is not None else None
        known = ", ".join(getattr(section, "model_fields", {})) or "none"
        return f"unknown key {key!r}; known keys here: {known}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if key else message


def _config_in(annotation: Any) -> Any:
    """The Config class inside an annotation such as ``LoRAConfig | None``."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)

"""The JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nestling.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of a model folder's JSON files.

    Raises:
        ModelError: it is missing, cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.name} is missing.", where=str(path.parent), remedy="Point at a complete model folder."
        ) from error
    except OSError as error:
        raise ModelError(
            f"{path.name} cannot be read: {error.strerror}.",
            where=str(path.parent),
            remedy="Point at a model folder.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"this is not JSON: {error}.", where=str(path), remedy="Get the file again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError("this must be a JSON object.", where=str(path), remedy="Get the file again.")
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """The same, empty when there is no such file."""
    return read_json(path) if path.is_file() else {}

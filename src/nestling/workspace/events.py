"""A run's diary: one JSON object a line, written by its one owner, read by anybody while it grows."""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nestling.workspace.atomic import readable_errors

Tick = Callable[[int, int], None]
"""Told how far long work is: (done, total)."""

_TOLD_EVERY = 32


def counting(tick: Tick, done: int, total: int, parts: int = 1) -> Callable[[], None]:
    """Something to call when one more thing is done, from any thread; one thread at a time reaches ``tick``.

    Args:
        tick: told after every 32 things.
        done: how many were done before.
        total: how many there are.
        parts: how many calls make one thing.
    """
    lock, calls = threading.Lock(), itertools.count(done * parts + 1)

    def count() -> None:
        with lock:
            number, rest = divmod(next(calls), parts)
            if not rest and number % _TOLD_EVERY == 0:
                tick(number, total)

    return count


class EventLog:
    """Append to and follow an ``events.jsonl``.

    Each event has ``time`` (Unix seconds), ``kind`` and the fields handed in. A line reaches the file in one
    write. What a kill in mid-write leaves, a last line without an end, is ignored by readers and cut off by
    the next writer. Lines are not fsynced: a killed process loses none, a power cut may lose the last few.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._handle: int | None = None

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Write one event and return it. Numbers that JSON cannot hold (NaN, infinities) become null.

        Raises:
            WorkspaceError: when the file cannot be written.
        """
        event: dict[str, Any] = _plain({"time": round(time.time(), 3), "kind": kind, **fields})
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with readable_errors(self.path):
            if self._handle is None:
                self._handle = self._open()
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
        return event

    def read(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The events after byte ``offset`` and the offset to continue from; no file yet means no events."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        whole = data.rfind(b"\n") + 1
        return [event for line in data[:whole].split(b"\n") if (event := _parse(line))], offset + whole

    def close(self) -> None:
        """Close the file; the next ``append`` opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(handle).st_size
        torn = size
        while torn and os.pread(handle, 1, torn - 1) != b"\n":
            torn -= 1
        if torn < size:
            os.ftruncate(handle, torn)
        return handle


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:  # a power cut can leave zeros inside a file
        return None
    return event if isinstance(event, dict) else None


def _plain(value: Any) -> Any:
    """``value`` with non-finite floats replaced by None and scalar tensors or arrays by Python numbers."""
    if hasattr(value, "item") and not isinstance(value, dict):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

"""Making way for people: long work pauses between its pieces while somebody waits for an answer.

The server keeps a sign up while it answers: a file whose time of change is never older than a second. Whoever computes
for long looks at it between micro-batches and decode steps. Nothing has to be undone when either of them is killed: the
sign grows old.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

SHARE = 0.2
"""Of the time, that the work keeps however many people chat."""

_FRESH_SECONDS = 1.0
_RENEWED_SECONDS = 0.3
_LOOK_SECONDS = 0.02

_sign: Path | None = None
_resumed = 0.0


def make_way_for(sign: Path | None) -> None:
    """From now on ``make_way`` looks at this sign; None for work that makes way for nobody."""
    global _sign, _resumed
    _sign, _resumed = sign, time.monotonic()


def make_way() -> None:
    """Pause while somebody is being answered, for at most four times as long as was worked since the last pause."""
    global _resumed
    if _sign is None:
        return
    until = time.monotonic() + (time.monotonic() - _resumed) * (1 - SHARE) / SHARE
    while time.monotonic() < until and answering(_sign):
        time.sleep(_LOOK_SECONDS)
    _resumed = time.monotonic()


def answering(sign: Path) -> bool:
    """Whether somebody is being answered. A clock that was set back makes a sign old, not fresh for hours."""
    try:
        return 0 <= time.time() - sign.stat().st_mtime < _FRESH_SECONDS
    except OSError:
        return False


@contextlib.asynccontextmanager
async def sign_up(sign: Path) -> AsyncIterator[None]:
    """Keep the sign up for the length of the block. A sign that cannot be written only makes answers slower."""

    def touch() -> None:
        with contextlib.suppress(OSError):
            sign.touch()

    async def renew() -> None:
        while True:
            await asyncio.sleep(_RENEWED_SECONDS)
            touch()

    touch()
    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        with contextlib.suppress(OSError):
            sign.unlink(missing_ok=True)

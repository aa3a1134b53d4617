"""What the request handlers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import Request

from nestling.feedback.desk import Desk
from nestling.feedback.people import Accounts, Identities, Person
from nestling.serving.answers import Answers
from nestling.serving.pool import ModelPool
from nestling.serving.security import bearer
from nestling.serving.settings import ServerSettings
from nestling.workspace import Workspace

# Reads how far the raising of the next version has come; None when none is being raised. See ``status``.
Progress = Callable[[], dict[str, Any] | None]

# Reads how its figures went: {stage: {figure: [(step, value), ...]}}.
Curves = Callable[[], dict[str, dict[str, list[tuple[int, float]]]]]


@dataclass
class ServerState:
    """One server's parts. ``closing`` is set when streams that would never end by themselves should."""

    workspace: Workspace
    settings: ServerSettings
    pool: ModelPool
    answers: Answers
    progress: Progress
    curves: Curves
    accounts: Accounts
    identities: Identities
    desk: Desk
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def stop(self) -> None:
        """End what would not end by itself: status streams close, answers on their way fail with an error."""
        self.closing.set()
        await self.pool.close()
        await self.answers.close()


def state_of(request: Request) -> ServerState:
    """The state of the server that handles ``request``."""
    return cast(ServerState, request.app.state.server)


IDENTITY_HEADER = "X-Nestling-Identity"


def person_of(request: Request, claimed: str | None = None) -> Person | None:
    """Who speaks: the account whose token came with the request, the browser whose identity we signed, or the name
    that was claimed."""
    state = state_of(request)
    if account := state.accounts.person(bearer(request.headers.get("authorization", ""))):
        return account
    if browser := state.identities.person(request.headers.get(IDENTITY_HEADER, "")):
        return browser
    return Person.claimed(claimed) if claimed else None


@asynccontextmanager
async def when_gone(request: Request, act: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``act`` as soon as the client hangs up while the block runs."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        act()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()

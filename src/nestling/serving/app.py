"""Putting the server together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from nestling.feedback import Recorder
from nestling.feedback.desk import Desk
from nestling.feedback.people import Accounts, Identities
from nestling.serving import errors, nest_api, openai_api, people_api
from nestling.serving.answers import Answers
from nestling.serving.pool import LoadEngine, ModelPool
from nestling.serving.security import Guard
from nestling.serving.settings import ServerSettings
from nestling.serving.state import Curves, Progress, ServerState
from nestling.serving.watch import watch_satisfaction
from nestling.storage import open_database
from nestling.workspace import Workspace

_PAGE = Path(__file__).parent / "page"


def create_app(
    workspace: Workspace,
    load_engine: LoadEngine,
    settings: ServerSettings | None = None,
    progress: Progress = lambda: None,
    curves: Curves = dict,
    database: str | Path | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        workspace: whose versions are served; its pointer is watched.
        load_engine: makes the engine of a version; called in a thread, takes seconds.
        settings: see ``ServerSettings``.
        progress: tells how the raising of the next version goes; called in a thread every second while a page
            is open. The page shows these keys, each optional: ``state`` ("running", "finished", "failed"),
            ``recipe``, ``stage``, ``stages`` (all names in order), ``part`` (what it is at within the stage),
            ``step``, ``steps`` (their number), ``eta_seconds``, ``metrics`` (name to number), ``message``
            and ``verdict`` ({"version", "accepted"}, the newest one).
        curves: tells how the figures of that raising went, by stage; see ``/api/curves``.
        database: path or URL of the judgments; by default the workspace's own.
    """
    settings = settings or ServerSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = open_database(database or workspace.database_path)
        pool = ModelPool(
            workspace.versions, load_engine, max_loaded=settings.max_loaded, max_queue=settings.max_queue
        )
        answers = Answers(pool, Recorder(opened), workspace.answering_sign)
        identities, desk = Identities.of(workspace), Desk(opened)
        state = ServerState(workspace, settings, pool, answers, progress, curves, accounts, identities, desk)
        app.state.server = state
        pool.start()
        watching = asyncio.create_task(watch_satisfaction(workspace.versions, opened))
        yield
        watching.cancel()
        await app.state.server.stop()
        opened.close()

    app = FastAPI(
        title="Nestling", docs_url=None, redoc_url=None, openapi_url="/openapi.json", lifespan=lifespan
    )
    accounts = Accounts(workspace)
    app.add_middleware(Guard, settings=settings, accounts=accounts)
    errors.install(app)
    app.include_router(openai_api.router)
    app.include_router(nest_api.router)
    app.include_router(people_api.router)
    app.include_router(nest_api.health)
    app.mount("/page", StaticFiles(directory=_PAGE))

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    @app.get("/desk")
    async def desk() -> FileResponse:
        return FileResponse(_PAGE / "desk.html")

    return app

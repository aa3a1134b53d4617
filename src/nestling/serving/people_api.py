"""``/api``: who judges, the desk, what people prefer, and taking judgments back."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from nestling.feedback.agreement import krippendorff_alpha, pair_units
from nestling.feedback.arena import standings
from nestling.feedback.opinions import opinions
from nestling.feedback.people import Person
from nestling.feedback.satisfaction import satisfaction, signals
from nestling.feedback.snapshot import erase_withdrawn
from nestling.serving.errors import ApiError
from nestling.serving.schemas import Number, SkipRequest
from nestling.serving.state import ServerState, person_of, state_of
from nestling.serving.watch import served_before

router = APIRouter(prefix="/api")


@router.post("/identity", status_code=201)
async def identity(request: Request) -> dict[str, str]:
    """An identity for this browser, to be sent along from now on; nobody else can make it up."""
    person, shown = state_of(request).identities.issue()
    return {"id": person.id, "identity": shown}


@router.get("/me")
async def me(request: Request) -> dict[str, Any]:
    """Who we take the asker for."""
    person = person_of(request)
    return {"id": person.id if person else None, "kind": person.kind if person else None}


@router.delete("/judgments/{number}")
async def withdraw(request: Request, number: Number) -> dict[str, Any]:
    """Take one's own judgment back for good, out of the snapshots that versions learnt from too."""
    state = state_of(request)
    await asyncio.to_thread(state.answers.recorder.withdraw, number, _known(request))
    await asyncio.to_thread(_erase, state)
    return {"withdrawn": 1}


@router.delete("/me")
async def forget(request: Request) -> dict[str, Any]:
    """Take back for good all that the asker has said, out of the snapshots that versions learnt from too."""
    state = state_of(request)
    count = await asyncio.to_thread(state.answers.recorder.withdraw_person, _known(request))
    await asyncio.to_thread(_erase, state)
    return {"withdrawn": count}


def _erase(state: ServerState) -> None:
    erase_withdrawn(state.answers.recorder.database, state.workspace.root / "snapshots")


@router.get("/desk")
async def desk(request: Request) -> dict[str, Any]:
    """The next answers that the asker should put in order; ``item`` is null when nothing is left for them."""
    state, person = state_of(request), _known(request)
    task = await asyncio.to_thread(state.desk.next_for, person)
    if task is None:
        return {"item": None, "messages": [], "answers": [], "waiting": 0}
    answers = [{"id": answer, "text": text} for answer, text in task.answers]
    return {"item": task.item, "messages": task.messages, "answers": answers, "waiting": task.waiting}


@router.post("/desk/{item}/skip")
async def skip(request: Request, item: Number, body: SkipRequest) -> dict[str, Any]:
    """Pass an item by."""
    await asyncio.to_thread(state_of(request).desk.skip, item, _known(request, body.user), body.reason)
    return {"skipped": item}


@router.get("/people")
async def opinion(request: Request) -> dict[str, Any]:
    """What people say as a whole: which version they prefer, how far they agree, how content they are."""
    return await asyncio.to_thread(_opinion, state_of(request))


def _opinion(state: ServerState) -> dict[str, Any]:
    database = state.answers.recorder.database
    given = list(opinions(database))
    serving = state.pool.serving.name if state.pool.serving else ""
    found = satisfaction(signals(database), serving, served_before(state.workspace.versions))
    return {
        "opinions": len(given),
        "agreement": krippendorff_alpha(pair_units(given), ordinal=True),
        "arena": [asdict(standing) for standing in standings(given)],
        "satisfaction": asdict(found),
    }


def _known(request: Request, claimed: str | None = None) -> Person:
    person = person_of(request, claimed)
    if person is None:
        raise ApiError(
            403,
            "Say who you are: send an identity (POST /api/identity) or an account's token.",
            code="unknown_person",
        )
    return person

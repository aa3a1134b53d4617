"""``/api``: what the page needs beyond chatting: status, versions, two answers side by side, judgments."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nestling.feedback.recorder import Winner
from nestling.serving import sse
from nestling.serving.answers import Answer
from nestling.serving.pool import is_offered
from nestling.serving.schemas import CompareRequest, JudgmentRequest, ThumbRequest, VoteRequest
from nestling.serving.state import ServerState, state_of, when_gone

router = APIRouter(prefix="/api")
health = APIRouter()

_SIDES = ("left", "right")
_WINNERS: dict[str, Winner] = {"left": "a", "right": "b", "tie": "tie", "both_bad": "both_bad"}
_STATUS_SECONDS = 1.0
_SILENCE_SECONDS = 15.0


@health.get("/healthz")
async def healthz(request: Request) -> JSONResponse:
    """200 once a version is being served, 503 before."""
    ready = state_of(request).pool.serving is not None
    return JSONResponse({"status": "ok" if ready else "starting"}, 200 if ready else 503)


@router.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """See ``_status``."""
    return await _status(state_of(request))


@router.get("/versions")
async def versions(request: Request) -> dict[str, Any]:
    """Every version with its state; ``offered`` ones may be named in a request."""
    state = state_of(request)
    serving = state.pool.serving.name if state.pool.serving else None
    listed = await asyncio.to_thread(state.workspace.versions.list)
    fields = {"kind", "state", "verdict", "created", "parents", "licence"}
    return {
        "versions": [
            {
                "name": version.name,
                **version.card.model_dump(include=fields),
                "serving": version.name == serving,
                "offered": is_offered(version) or version.name == serving,
            }
            for version in listed
        ]
    }


@router.get("/events")
async def events(request: Request) -> Response:
    """The status as a stream: at once, then whenever it changed."""
    gone = asyncio.Event()
    return sse.event_stream(request, _status_events(state_of(request), gone), gone.set)


@router.post("/compare", response_model=None)
async def compare(request: Request, body: CompareRequest) -> Response:
    """Two answers to one prompt, streamed side by side without telling which version gives which.

    Two different models are put left and right at random; the same one twice answers with two seeds.
    """
    state = state_of(request)
    models = random.sample(body.models, 2)
    first = body.question(models[0], state.settings.sampling)
    second = replace(
        body.question(models[1], state.settings.sampling),
        sampling=replace(first.sampling, seed=(first.sampling.seed ^ 1)),
    )
    answers = [state.answers.start(question) for question in (first, second)]

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    try:
        async with when_gone(request, cancel):
            for answer in answers:
                await answer.taken()
    except BaseException:  # a cancelled request too: the other answer must not go on alone
        cancel()
        raise
    return sse.event_stream(request, _both(answers), cancel)


@router.post("/judgments", status_code=201)
async def judge(request: Request, body: JudgmentRequest) -> dict[str, Any]:
    """Write down a thumb or a vote. The reply to a vote tells which version gave which answer."""
    state = state_of(request)
    ids = (body.generation_id,) if isinstance(body, ThumbRequest) else (body.left, body.right)
    for generation_id in ids:
        await state.answers.written(generation_id)
    return await asyncio.to_thread(_record, state, body)


def _record(state: ServerState, body: ThumbRequest | VoteRequest) -> dict[str, Any]:
    recorder = state.answers.recorder
    if isinstance(body, ThumbRequest):
        number = recorder.record_thumb(body.generation_id, body.value, reason=body.reason, client=body.user)
        return {"id": number}
    winner = _WINNERS[body.winner]
    number = recorder.record_comparison(body.left, body.right, winner, reason=body.reason, client=body.user)
    left, right = recorder.versions((body.left, body.right))
    return {"id": number, "versions": {"left": left, "right": right}}


async def _both(answers: list[Answer]) -> AsyncIterator[str]:
    """Events of two answers as they come, each marked with its side."""
    streams = {side: aiter(answer) for side, answer in zip(_SIDES, answers, strict=True)}
    ids = {side: answer.id for side, answer in zip(_SIDES, answers, strict=True)}
    pending = {asyncio.ensure_future(anext(stream)): side for side, stream in streams.items()}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                side, piece = pending.pop(task), task.result()
                if piece.text:
                    yield sse.data({"side": side, "text": piece.text})
                if piece.completion is None:
                    pending[asyncio.ensure_future(anext(streams[side]))] = side
                else:
                    reason = piece.completion.finish_reason
                    yield sse.data({"side": side, "generation_id": ids[side], "finish_reason": reason})
        yield sse.DONE
    finally:
        for task in pending:
            task.cancel()


async def _status_events(state: ServerState, gone: asyncio.Event) -> AsyncIterator[str]:
    last, silence = None, 0.0
    while not gone.is_set() and not state.closing.is_set():
        current = await _status(state)
        if current != last:
            yield sse.data(current)
            last, silence = current, 0.0
        elif silence >= _SILENCE_SECONDS:
            yield ": still here\n\n"
            silence = 0.0
        with suppress(TimeoutError):
            await asyncio.wait_for(state.closing.wait(), _STATUS_SECONDS)
        silence += _STATUS_SECONDS


async def _status(state: ServerState) -> dict[str, Any]:
    """What is served, what is being loaded or raised, and what went wrong."""
    pool = state.pool
    raising = await asyncio.to_thread(state.progress)
    serving = None
    if pool.serving is not None:
        card = pool.serving.card
        serving = {"name": pool.serving.name, "kind": card.kind, "assistant": card.assistant}
    return {
        "serving": serving,
        "loading": pool.loading,
        "loaded": pool.loaded(),
        "open_requests": pool.open_streams(),
        "error": pool.error or state.answers.recording_error,
        "raising": raising,
    }

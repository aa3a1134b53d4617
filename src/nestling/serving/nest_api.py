"""``/api``: what the page needs beyond chatting: status, versions, answers side by side, judgments."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nestling.feedback.people import Person
from nestling.feedback.recorder import Recorder, Score, Winner
from nestling.serving import sse
from nestling.serving.answers import Answer
from nestling.serving.pool import is_offered
from nestling.serving.schemas import (
    CompareRequest,
    Judged,
    JudgmentRequest,
    RankingRequest,
    RewriteRequest,
    ScoreRequest,
    ThumbRequest,
    VoteRequest,
)
from nestling.serving.state import ServerState, person_of, state_of, when_gone
from nestling.serving.watch import ROLLED_BACK

router = APIRouter(prefix="/api")
health = APIRouter()

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
    """Every version with its state; ``offered`` ones may be named in a request.

    ``learnt`` counts the judgments and people that a version learnt from; ``instead_of`` names the version that was
    rolled back to this one.
    """
    state = state_of(request)
    serving = state.pool.serving.name if state.pool.serving else None
    listed = await asyncio.to_thread(state.workspace.versions.list)
    fields = {"kind", "state", "verdict", "created", "parents", "licence"}
    exams = {version.name: version.card.metrics.get("exam") for version in listed}
    pointer = await asyncio.to_thread(state.workspace.versions.pointer)
    left = pointer.history[-1] if pointer and pointer.history else None
    taken_back = left.version if pointer and left and left.over and pointer.version == serving else None
    return {
        "versions": [
            {
                "name": version.name,
                **version.card.model_dump(include=fields),
                "exam": exams[version.name],
                "learnt": (version.card.model_extra or {}).get("learnt"),
                "rolled_back": version.card.verdict.startswith(ROLLED_BACK),
                "instead_of": taken_back if version.name == serving else None,
                "serving": version.name == serving,
                "offered": is_offered(version) or version.name == serving,
            }
            for version in listed
        ]
    }


@router.get("/curves")
async def curves(request: Request) -> dict[str, Any]:
    """How the figures of the raising went, stage by stage: ``{stage: {figure: [[step, value], ...]}}``."""
    return {"curves": await asyncio.to_thread(state_of(request).curves)}


@router.get("/events")
async def events(request: Request) -> Response:
    """The status as a stream: at once, then whenever it changed."""
    gone = asyncio.Event()
    return sse.event_stream(request, _status_events(state_of(request), gone), gone.set)


@router.post("/compare", response_model=None)
async def compare(request: Request, body: CompareRequest) -> Response:
    """Answers to one prompt, streamed side by side without telling which version gives which.

    The models come in a random order; each answer has a seed of its own.
    """
    state = state_of(request)
    models = random.sample(body.models, len(body.models))
    person = person_of(request, body.user)
    questions = [body.question(model, state.settings.sampling, person, blind=True) for model in models]
    seed = questions[0].sampling.seed
    answers = [
        state.answers.start(replace(question, sampling=replace(question.sampling, seed=seed ^ number)))
        for number, question in enumerate(questions)
    ]

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    try:
        async with when_gone(request, cancel):
            for answer in answers:
                await answer.taken()
    except BaseException:  # a cancelled request too: the other answers must not go on alone
        cancel()
        raise
    return sse.event_stream(request, _together(answers), cancel)


@router.post("/judgments", status_code=201)
async def judge(request: Request, body: JudgmentRequest) -> dict[str, Any]:
    """Write down a judgment. The reply to a vote or a ranking tells which version gave which answer."""
    state = state_of(request)
    for generation_id in _judged(body):
        await state.answers.written(generation_id)
    person = person_of(request, body.user)
    blinded = state.answers.were_blind(_judged(body)) or getattr(body, "desk_item", None) is not None
    told = await asyncio.to_thread(_record, state.answers.recorder, body, person, blinded)
    if "versions" in told:
        state.answers.told(_judged(body))
    return told


def _judged(body: Judged) -> list[str]:
    if isinstance(body, VoteRequest):
        return [body.left, body.right]
    return body.answers if isinstance(body, RankingRequest) else [body.generation_id]


def _record(recorder: Recorder, body: Judged, person: Person | None, blinded: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"reason": body.reason, "client": person}
    match body:
        case ThumbRequest():
            return {"id": recorder.record_thumb(body.generation_id, body.value, **said)}
        case RewriteRequest():
            return {"id": recorder.record_rewrite(body.generation_id, body.text, **said)}
        case ScoreRequest():
            value = cast(Score, str(body.value))
            number = recorder.record_score(
                body.generation_id, value, blinded=blinded, desk_item=body.desk_item, **said
            )
            return {"id": number}
        case RankingRequest():
            number = recorder.record_ranking(
                body.answers,
                body.ranks,
                all_bad=body.all_bad,
                blinded=blinded,
                desk_item=body.desk_item,
                **said,
            )
            return {"id": number, "versions": recorder.versions(body.answers)}
        case VoteRequest():
            number = recorder.record_comparison(
                body.left, body.right, _WINNERS[body.winner], blinded=blinded, **said
            )
            left, right = recorder.versions((body.left, body.right))
            return {"id": number, "versions": {"left": left, "right": right}}


async def _together(answers: list[Answer]) -> AsyncIterator[str]:
    """Events of several answers as they come, each marked with its answer's number."""
    streams = [aiter(answer) for answer in answers]
    pending = {asyncio.ensure_future(anext(stream)): at for at, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                at, piece = pending.pop(task), task.result()
                if piece.text:
                    yield sse.data({"answer": at, "text": piece.text})
                if piece.completion is None:
                    pending[asyncio.ensure_future(anext(streams[at]))] = at
                else:
                    reason = piece.completion.finish_reason
                    yield sse.data({"answer": at, "generation_id": answers[at].id, "finish_reason": reason})
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

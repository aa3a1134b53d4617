"""``/v1``: what OpenAI's clients speak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from nestling.generation.protocol import Completion
from nestling.serving import sse
from nestling.serving.answers import Answer
from nestling.serving.pool import CURRENT, is_offered
from nestling.serving.schemas import ChatRequest
from nestling.serving.state import person_of, state_of, when_gone
from nestling.workspace import Version

router = APIRouter(prefix="/v1")


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The served version under the name "nestling", then every version that may be asked for."""
    state = state_of(request)
    versions = await asyncio.to_thread(state.workspace.versions.list)
    serving = state.pool.serving
    models = [_model(v.name, v) for v in versions if is_offered(v) or (serving and v.name == serving.name)]
    return {"object": "list", "data": [*([_model(CURRENT, serving)] if serving else []), *models]}


@router.get("/models/{name}")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One model by name."""
    return _model(name, await asyncio.to_thread(state_of(request).pool.resolve, name))


@router.post("/chat/completions", response_model=None)
async def chat_completions(request: Request, body: ChatRequest) -> Response | dict[str, Any]:
    """Answer a conversation, whole or as a stream. Hanging up stops the computation."""
    state = state_of(request)
    answer = state.answers.start(
        body.question(body.model, state.settings.sampling, person_of(request, body.user))
    )
    async with when_gone(request, answer.cancel):
        await answer.taken()
        if not body.stream:
            return _whole(answer, await answer.whole())
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    return sse.event_stream(request, _events(answer, include_usage), answer.cancel)


async def _events(answer: Answer, include_usage: bool) -> AsyncIterator[str]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        usage = {"usage": None} if include_usage else {}
        return sse.data({**_head(answer, "chat.completion.chunk"), "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": ""})
    async for piece in answer:
        if piece.text:
            yield chunk({"content": piece.text})
        if piece.completion is not None:
            yield chunk({}, piece.completion.finish_reason)
            if include_usage:
                usage = _usage(piece.completion)
                yield sse.data({**_head(answer, "chat.completion.chunk"), "choices": [], "usage": usage})
    yield sse.DONE


def _whole(answer: Answer, completion: Completion) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "finish_reason": completion.finish_reason,
        "logprobs": None,
    }
    return {**_head(answer, "chat.completion"), "choices": [choice], "usage": _usage(completion)}


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.version}


def _usage(completion: Completion) -> dict[str, int]:
    prompt, answer = completion.prompt_tokens, completion.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _model(name: str, version: Version) -> dict[str, Any]:
    created = int(datetime.fromisoformat(version.card.created).timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": "nestling"}

"""Server-sent events: one JSON object each, errors included."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from nestling.errors import NestlingError
from nestling.serving.errors import api_error
from nestling.serving.state import when_gone

log = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"


def data(value: Any) -> str:
    """One event. Escapes keep it on one line whatever the text holds."""
    return f"data: {json.dumps(value)}\n\n"


def event_stream(
    request: Request, events: AsyncIterator[str], cancel: Callable[[], None]
) -> StreamingResponse:
    """Send events as they come; ``cancel`` is called when the client hangs up or the stream breaks.

    An error on the way is sent as the last event, in OpenAI's shape, rather than ending in silence.
    """

    async def guarded() -> AsyncIterator[str]:
        try:
            async with when_gone(request, cancel):
                async for event in events:
                    yield event
        except Exception as error:  # the status line is sent: an event is the only place left to say it
            if not isinstance(error, NestlingError):
                log.exception("a stream failed")
            yield data(api_error(error).body())
        finally:
            cancel()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(guarded(), media_type="text/event-stream", headers=headers)

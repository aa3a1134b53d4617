"""Every error in the shape OpenAI's clients read, with the status that says whose fault it is."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nestling.errors import DataError, NestlingError, QueueFull, RequestError
from nestling.feedback import UnknownAnswer
from nestling.serving.pool import NotReady, UnknownVersion

log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = "2"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An HTTP error: ``param`` names the field at fault, ``code`` is for programs."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's API documents for errors."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": _RETRY_AFTER_SECONDS} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def api_error(error: Exception) -> ApiError:
    """What a client is told about ``error``; the inside of an unexpected one stays inside."""
    message = str(error)
    match error:
        case ApiError():
            return error
        case UnknownVersion():
            return ApiError(404, message, code="model_not_found", param="model")
        case NotReady():
            return ApiError(503, message, code="model_not_ready")
        case QueueFull():
            return ApiError(429, message, code="queue_full")
        case RequestError():
            code = "context_length_exceeded" if error.where == "messages" else "invalid_value"
            return ApiError(400, message, code=code, param=error.where)
        case UnknownAnswer():
            return ApiError(404, message, code="unknown_answer")
        case DataError():
            # Only conversations carry a place: a turn, or the chat template that refused them.
            return ApiError(400, message, code="invalid_value", param="messages" if error.where else None)
        case NestlingError():
            return ApiError(500, message)
        case _:
            return ApiError(500, "Something went wrong inside the server; its log says more.")


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` in OpenAI's shape."""

    @app.exception_handler(ApiError)
    @app.exception_handler(NestlingError)
    @app.exception_handler(Exception)
    async def known(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error, request.headers.get("content-type", "")).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        what = {
            404: f"There is nothing at {request.url.path}.",
            405: f"{request.method} is not allowed here.",
            400: "The body cannot be read: send JSON in UTF-8, not compressed, not nested too deeply and without a "
            "number of thousands of digits.",
        }
        return ApiError(error.status_code, what.get(error.status_code, str(error.detail))).response()


def _invalid(error: RequestValidationError, content_type: str) -> ApiError:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"][1:]]
    body = error.body if isinstance(error.body, dict) else {}
    if place and place[0] not in body and place[0] == body.get("kind"):
        place = place[1:]  # the kind of body that the field belongs to, not a field
    if problem["type"].startswith("union_tag"):
        place = ["kind"]
    if problem["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    if not place and "json" not in content_type:
        what = "The body must be JSON, and say so: Content-Type: application/json."
        return ApiError(400, what, code="invalid_json")
    if not place:
        return ApiError(400, f"The body must be a JSON object: {problem['msg']}.", code="invalid_value")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown field {'.'.join(place)!r}.", code="unknown_field", param=place[0])
    message = problem["msg"].removeprefix("Value error, ")
    code = "missing_field" if problem["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{'.'.join(place)}: {message}.".replace("..", "."), code=code, param=place[0])

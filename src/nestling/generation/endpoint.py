"""Any OpenAI-compatible server as a generator: to judge with it, or to measure it with our own suite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from nestling.errors import EndpointError
from nestling.generation.protocol import Chunk, Completion, FinishReason, Request, nothing

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class Endpoint:
    """A chat-completions endpoint.

    Args:
        url: base URL, such as ``http://127.0.0.1:8000/v1``.
        model: the model's name there.
        api_key: bearer token; the environment variable OPENAI_API_KEY when None.
        concurrency: requests under way at the same time.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
    ) -> None:
        self.url, self.model, self.concurrency = url.rstrip("/"), model, concurrency
        key = api_key or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=timeout)

    def generate(
        self, requests: Sequence[Request], answered: Callable[[], object] = nothing
    ) -> list[Completion]:
        """Answer all requests, in their order; ``answered`` is called as each is, by whatever thread answers.

        Raises:
            EndpointError: the server cannot be reached, refuses, or answers in another shape.
        """

        def complete(request: Request) -> Completion:
            completion = self._complete(request)
            answered()
            return completion

        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(complete, requests))

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece; closing the iterator closes the connection."""
        text, reason, pieces = "", None, 0
        body = self._body(request) | {"stream": True}
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                self._refuse_errors(response)
                for line in response.iter_lines():
                    if not line.startswith("data:") or line.removeprefix("data:").strip() == "[DONE]":
                        continue
                    event = json.loads(line.removeprefix("data:"))
                    if "error" in event:
                        raise EndpointError(
                            str(event["error"]), where=self.url, remedy="Look at that server's log."
                        )
                    for choice in event.get("choices", [])[:1]:
                        piece = choice.get("delta", {}).get("content") or ""
                        text, pieces = text + piece, pieces + bool(piece)
                        reason = choice.get("finish_reason") or reason
                        if piece:
                            yield Chunk(piece)
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise EndpointError(
                f"the stream broke: {error}.",
                where=self.url,
                remedy="Ask again; if it happens again, look at that server's log.",
            ) from error
        yield Chunk("", Completion(text, _REASONS.get(reason or "", "length"), 0, pieces))

    def _complete(self, request: Request) -> Completion:
        try:
            response = self._client.post(f"{self.url}/chat/completions", json=self._body(request))
        except httpx.HTTPError as error:
            raise EndpointError(
                f"cannot be reached: {error}.",
                where=self.url,
                remedy="Is the server running and the URL right?",
            ) from error
        self._refuse_errors(response)
        try:
            answer = response.json()
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            return Completion(
                text=choice["message"].get("content") or "",
                finish_reason=_REASONS.get(choice.get("finish_reason"), "length"),
                prompt_tokens=int(usage.get("prompt_tokens", 0)),
                completion_tokens=int(usage.get("completion_tokens", 0)),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"did not answer as a chat-completions server: {error!r}.",
                where=self.url,
                remedy="The URL is the one that /chat/completions is put behind, mostly ending in /v1.",
            ) from error

    def _refuse_errors(self, response: httpx.Response) -> None:
        if response.is_error:
            raise EndpointError(
                f"answered HTTP {response.status_code}: {response.text[:300]}",
                where=self.url,
                remedy="Check the URL, the model's name and the key in OPENAI_API_KEY.",
            )

    def _body(self, request: Request) -> dict[str, Any]:
        """Standard fields always, our extensions only when used, so that strict servers accept the request."""
        s = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": s.temperature,
            "top_p": s.top_p,
            "max_tokens": s.max_tokens,
            "seed": s.seed,
        }
        if s.stop:
            body["stop"] = list(s.stop)
        extensions = {
            "top_k": (s.top_k, 0),
            "min_p": (s.min_p, 0.0),
            "repetition_penalty": (s.repetition_penalty, 1.0),
        }
        return body | {name: value for name, (value, off) in extensions.items() if value != off}

"""What every generator speaks, whether it is our engine or somebody's HTTP endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nestling.text.messages import Message

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How one request is sampled.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 mean "off". ``seed`` makes the
    request repeatable: its random numbers depend on (seed, position) alone, never on its neighbours.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One prompt to answer. ``messages`` end with a user turn, or a system turn before it."""

    messages: Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Completion:
    """One answer.

    ``token_ids`` include the end token when ``finish_reason`` is "stop" by end token. ``logprobs`` are those
    of the sampled tokens, natural log, after temperature (0 counts as 1) and repetition penalty, before any
    truncation. Endpoints that do not report tokens leave both empty.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_ids: tuple[int, ...] = ()

    @property
    def finished(self) -> bool:
        """True when the answer ended by itself rather than by the token limit."""
        return self.finish_reason == "stop"


@dataclass(frozen=True)
class Chunk:
    """A piece of streamed text; the last one carries the whole completion."""

    text: str
    completion: Completion | None = None


def nothing() -> None:
    """Nobody wants to know."""


class Generator(Protocol):
    """Answers requests. Implemented by ``generation.engine.Engine`` and ``generation.endpoint.Endpoint``."""

    def generate(
        self, requests: Sequence[Request], answered: Callable[[], object] = nothing
    ) -> list[Completion]:
        """Answer all requests, in their order; ``answered`` is called as each is, by whatever thread answers."""
        ...

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece; closing the iterator cancels it."""
        ...

"""The local engine: a running batch that requests join and leave, on the very weights that training updates."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nestling.compute.courtesy import make_way
from nestling.compute.process import tidy_memory
from nestling.errors import RequestError
from nestling.generation import sampler
from nestling.generation.protocol import Chunk, Completion, FinishReason, Request, Sampling, nothing
from nestling.generation.stops import StopScanner
from nestling.model.decoder import Attend, Decoder
from nestling.model.hf_folder import LoadedModel
from nestling.model.kv_cache import KVCache
from nestling.model.packed import InferenceNetwork, PackedDecoder
from nestling.model.rows import common_prefix
from nestling.text.detokenizer import StreamDecoder

_ROOM = 128  # tokens an answer has room for at once: a cache that grows is copied, and leaves a hole of its old size


@dataclass(frozen=True)
class StepEvent:
    """What one step produced for one request: new text, and the completion when it ended."""

    ticket: int
    text: str
    completion: Completion | None = None


@dataclass
class _Sequence:
    """A request on its way through the engine."""

    ticket: int
    sampling: Sampling
    prompt: list[int]
    decoder: StreamDecoder
    stops: StopScanner
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""


class Engine:
    """Continuous batching over one model.

    Call ``submit`` and then ``step`` until the completion arrives; ``generate`` and ``stream`` do that for callers
    without a loop of their own. Not thread-safe: one thread owns an engine. Weights may change only while it is idle.

    Args:
        model: the network and its tokenizer.
        max_batch: sequences that run at the same time.
        context_length: longest prompt plus answer in tokens; the model's own when None.
        prefill_tokens: prompt tokens computed in one go, at least one whole prompt.
        frozen: the weights never change, so that only their packed form is kept.
        network: what another engine on the same weights computes with, to share it.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_batch: int = 32,
        context_length: int | None = None,
        prefill_tokens: int = 2048,
        frozen: bool = False,
        network: InferenceNetwork | None = None,
    ) -> None:
        self.tokenizer = model.tokenizer
        self._weights = network or InferenceNetwork(model.decoder, frozen)
        self._network: Decoder | PackedDecoder = self._weights.rest()
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self.context_length = min(context_length or model.context_length, model.context_length)
        self._cache = KVCache(model.config, self._network.dtype, self._network.device)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # row r of the cache belongs to _running[r]
        self._tickets = 0

    @property
    def active(self) -> int:
        """Requests submitted and not yet ended."""
        return len(self._waiting) + len(self._running)

    def submit(self, request: Request) -> int:
        """Queue a request and return its ticket.

        Raises:
            RequestError: an impossible sampling value, or prompt and answer do not fit the context.
        """
        return self.submit_ids(self.tokenizer.render_prompt(request.messages), request.sampling)

    def submit_ids(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a prompt that is already token ids."""
        sampler.validate(sampling)
        if not prompt:
            raise RequestError(
                "the prompt is empty.", where="messages", remedy="Give at least one message with text."
            )
        if len(prompt) + sampling.max_tokens > self.context_length:
            raise RequestError(
                f"the prompt's {len(prompt)} tokens and max_tokens {sampling.max_tokens} exceed the context of "
                f"{self.context_length} tokens.",
                where="messages",
                remedy="Shorten the conversation or lower max_tokens.",
            )
        self._tickets += 1
        decoder, stops = StreamDecoder(self.tokenizer), StopScanner(sampling.stop)
        self._waiting.append(_Sequence(self._tickets, sampling, list(prompt), decoder, stops))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """Drop a request; it computes nothing from the next step on. Unknown tickets are ignored."""
        for sequence in self._waiting:
            if sequence.ticket == ticket:
                self._waiting.remove(sequence)
                return
        for row, sequence in enumerate(self._running):
            if sequence.ticket == ticket:
                self._leave(row)
                return

    def cancel_all(self) -> None:
        """Drop everything."""
        self._waiting.clear()
        for row in reversed(range(len(self._running))):
            self._leave(row)

    def rest(self) -> None:
        """Let go of weights packed for inference until the next request; for when others want the memory."""
        self._network = self._weights.rest()

    @torch.inference_mode()
    def step(self) -> list[StepEvent]:
        """Advance: let waiting requests in if it pays, else compute one token for everyone running."""
        joining = self._admit()
        if joining:
            if not self._running:
                self._network = self._weights.current()
            prompts, copies = _distinct([sequence.prompt for sequence in joining])
            lengths, common = [len(prompt) for prompt in prompts], common_prefix(prompts)
            ids = prompts[0][:common] + [token for prompt in prompts for token in prompt[common:]]
            # Room for those who follow too, so that the cache is not copied with every group that joins.
            length = max(len(s.prompt) + min(s.sampling.max_tokens, _ROOM) for s in joining)
            self._cache.reserve(length, min(self.max_batch, self.active + len(joining)) - self._cache.count)
            try:
                hidden = self._forward(ids, self._cache.prefill(lengths, common, copies))
                ends = [i for i, n in enumerate(copies) for _ in range(n)]
                last = torch.tensor(lengths, device=hidden.device).sub_(common).cumsum(0)[ends] + common - 1
                rows = range(len(self._running), len(self._running) + len(joining))
                self._running.extend(joining)
            except BaseException:  # Ctrl-C too: rows that nobody owns would mix up later answers
                self._cache.keep(len(self._running))
                raise
            return self._advance(rows, hidden[last])
        if not self._running:
            return []
        ids = [sequence.ids[-1] for sequence in self._running]
        return self._advance(range(len(self._running)), self._forward(ids, self._cache.decode()))

    def generate(
        self, requests: Sequence[Request], answered: Callable[[], object] = nothing
    ) -> list[Completion]:
        """Answer all requests, in their order; ``answered`` is called as each is."""
        tickets = [self.submit(request) for request in requests]
        try:
            return self.drain(tickets, answered)
        except BaseException:  # interrupted, say: nobody waits for them any more
            for ticket in tickets:
                self.cancel(ticket)
            raise

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece; closing the iterator cancels it."""
        ticket = self.submit(request)
        try:
            while True:
                for event in self.step():
                    if event.ticket == ticket:
                        yield Chunk(event.text, event.completion)
                        if event.completion is not None:
                            return
        finally:
            self.cancel(ticket)

    def drain(
        self, tickets: Sequence[int], answered: Callable[[], object] = nothing,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:  # fmt: skip
        """Step until all of ``tickets`` have ended; gives up, with what there is, when ``stopped``."""
        done: dict[int, Completion] = {}
        while len(done) < len(tickets) and not stopped():
            make_way()
            for event in self.step():
                if event.completion is not None:
                    done[event.ticket] = event.completion
                    answered()
            tidy_memory()
        return [done[ticket] for ticket in tickets if ticket in done]

    def _admit(self) -> list[_Sequence]:
        """Waiting requests to let in now: a small prefill costs nearly as much as a large one, so rows that
        fall free are gathered before they are refilled."""
        free = self.max_batch - len(self._running)
        if not self._waiting or (
            self._running and free < min(len(self._waiting), max(1, self.max_batch // 8))
        ):
            return []
        joining: list[_Sequence] = []
        tokens = 0
        while self._waiting and len(joining) < free:
            if not joining or self._waiting[0].prompt != joining[-1].prompt:
                tokens += len(self._waiting[0].prompt)
            if joining and tokens > self.prefill_tokens:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _forward(self, ids: list[int], attend: Attend) -> Tensor:
        hidden: Tensor = self._network(torch.tensor(ids, device=self._network.device), attend)
        return hidden

    def _advance(self, rows: range, hidden: Tensor) -> list[StepEvent]:
        """Sample a token for each of these rows from its hidden state and see who has ended."""
        sequences = [self._running[row] for row in rows]
        logits = self._network.logits(hidden)
        for row, s in enumerate(sequences):
            if s.sampling.repetition_penalty != 1:
                sampler.penalise_repetition(logits[row], s.prompt + s.ids, s.sampling.repetition_penalty)
        randoms = [sampler.uniform(s.sampling.seed, len(s.ids)) for s in sequences]
        tokens, logprobs = sampler.next_tokens(logits, [s.sampling for s in sequences], randoms)
        events, ended = [], []
        for row, s, token, logprob in zip(rows, sequences, tokens.tolist(), logprobs.tolist(), strict=True):
            s.ids.append(token)
            s.logprobs.append(logprob)
            event = self._observe(s, token)
            if event.completion is not None:
                ended.append(row)
            if event.text or event.completion is not None:
                events.append(event)
        for row in reversed(ended):
            self._leave(row)
        return events

    def _observe(self, s: _Sequence, token: int) -> StepEvent:
        """Turn a new token into text and notice the end."""
        ended = token in self.tokenizer.eos_ids
        text = s.stops.push("" if ended else s.decoder.push(token))
        reason: FinishReason | None = "stop" if ended or s.stops.hit else None
        if reason is None and len(s.ids) >= s.sampling.max_tokens:
            reason = "length"
        if reason is not None and not s.stops.hit:
            text += s.stops.push(s.decoder.flush())
            text += s.stops.flush()
        s.text += text
        if reason is None:
            return StepEvent(s.ticket, text)
        completion = Completion(
            text=s.text,
            finish_reason="stop" if s.stops.hit else reason,
            prompt_tokens=len(s.prompt),
            completion_tokens=len(s.ids),
            token_ids=tuple(s.ids),
            logprobs=tuple(s.logprobs),
            prompt_ids=tuple(s.prompt),
        )
        return StepEvent(s.ticket, text, completion)

    @torch.inference_mode()
    def _leave(self, row: int) -> None:
        moved = self._cache.remove(row)
        self._running[row] = self._running[moved]
        self._running.pop()


def _distinct(prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Neighbours that are equal as one, and how many each stands for."""
    runs = [(prompt, len(list(run))) for prompt, run in itertools.groupby(prompts)]
    return [prompt for prompt, _ in runs], [n for _, n in runs]

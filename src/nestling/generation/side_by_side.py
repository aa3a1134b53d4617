"""Several engines on the same weights, one for each worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from nestling.compute.workers import Workers
from nestling.generation.engine import Engine
from nestling.generation.protocol import Chunk, Completion, Request, Sampling, nothing
from nestling.model.hf_folder import LoadedModel
from nestling.model.packed import InferenceNetwork


class SideBySide:
    """A ``Generator`` that deals its requests among engines, each computing in a thread of its own.

    Who answers what depends on the requests' order alone. Prompts that are equal and stand next to each other stay
    together: they are computed once.

    Args:
        model: the network and its tokenizer.
        workers: who computes.
        max_batch: sequences that run at the same time, in all engines together.
    """

    def __init__(self, model: LoadedModel, workers: Workers, *, max_batch: int) -> None:
        self.tokenizer, self._workers = model.tokenizer, workers
        network, each = InferenceNetwork(model.decoder), -(-max_batch // workers.count)
        self._engines = [Engine(model, max_batch=each, network=network) for _ in range(workers.count)]

    def generate(
        self, requests: Sequence[Request], answered: Callable[[], object] = nothing
    ) -> list[Completion]:
        """Answer all requests, in their order; ``answered`` is called as each is, by whatever thread answers."""
        prompts = [self.tokenizer.render_prompt(request.messages) for request in requests]
        return self.generate_ids(prompts, [request.sampling for request in requests], answered)

    def generate_ids(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling],
        answered: Callable[[], object] = nothing,
    ) -> list[Completion]:  # fmt: skip
        """Answer prompts that are already token ids, each with its own sampling."""
        runs = [
            list(run) for _, run in itertools.groupby(range(len(prompts)), key=lambda i: list(prompts[i]))
        ]
        count = self._workers.count
        shares = [[index for run in runs[n::count] for index in run] for n in range(count)]

        def answer(worker: int, share: list[int]) -> list[Completion]:
            engine = self._engines[worker]
            try:
                tickets = [engine.submit_ids(prompts[index], sampling[index]) for index in share]
                return engine.drain(tickets, answered, self._workers.stopping.is_set)
            finally:
                engine.cancel_all()  # what is left when another worker failed

        found = self._workers.map(answer, shares)
        flat = itertools.chain.from_iterable
        completions = dict(zip(flat(shares), flat(found), strict=True))
        return [completions[index] for index in range(len(prompts))]

    def rest(self) -> None:
        """Let go of weights packed for inference until the next request; for when others want the memory."""
        for engine in self._engines:
            engine.rest()

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece, on the first engine; closing the iterator cancels it."""
        return self._engines[0].stream(request)

"""Best of n: several answers to a request, of which the one that is judged best is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from nestling.generation.protocol import Chunk, Completion, Generator, Request, Sampling, nothing
from nestling.generation.sampler import derive_seed

Judge = Callable[[Sequence[int], Sequence[Sequence[int]]], list[float]]
"""How good each answer to a prompt is; all as token ids."""

DIFFERENT = 0.7
"""Temperature of the further answers at least: greedy ones would be the same."""


def variants(sampling: Sampling, count: int) -> list[Sampling]:
    """The sampling that was asked for, and further ones with seeds of their own."""
    further = [
        replace(
            sampling,
            temperature=max(sampling.temperature, DIFFERENT),
            seed=derive_seed(sampling.seed, number),
        )
        for number in range(1, count)
    ]
    return [sampling, *further]


def chosen(completions: Sequence[Completion], judge: Judge) -> Completion:
    """The best; the first unless another is better. Where half of them or more ended by themselves, none that was cut;
    where most were cut, the asker wanted short ones, and to be cut says nothing against an answer."""
    said = [c for c in completions if c.token_ids]
    ended = [c for c in said if c.finished]
    among = (ended if 2 * len(ended) >= len(said) else said) or list(completions[:1])
    if len(among) == 1:
        return among[0]
    merits = judge(among[0].prompt_ids, [c.token_ids for c in among])
    return among[max(range(len(among)), key=lambda at: (merits[at], -at))]


@dataclass(frozen=True)
class BestOf:
    """A ``Generator`` that answers every request ``count`` times and gives the best by ``judge``."""

    engine: Generator
    judge: Judge
    count: int

    def generate(
        self, requests: Sequence[Request], answered: Callable[[], object] = nothing
    ) -> list[Completion]:
        """See ``Generator``; ``answered`` is called once a request."""
        all_of = [replace(r, sampling=s) for r in requests for s in variants(r.sampling, self.count)]
        done = self.engine.generate(all_of)
        best = []
        for at in range(0, len(done), self.count):
            best.append(chosen(done[at : at + self.count], self.judge))
            answered()
        return best

    def stream(self, request: Request) -> Iterator[Chunk]:
        """The best answer at once: nobody knows it before all are there."""
        [best] = self.generate([request])
        yield Chunk(best.text, best)

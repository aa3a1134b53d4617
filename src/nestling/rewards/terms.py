"""What an answer earns: a learned score, checks, rules. Each is a term with a name, logged on its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nestling.checks import judge
from nestling.checks.verdict import Answer
from nestling.compute.workers import Workers
from nestling.data.packing import deal_rows
from nestling.generation.protocol import Completion
from nestling.model.decoder import Decoder
from nestling.model.rows import pack_candidates
from nestling.model.scorer import Scorer
from nestling.rewards.predictor import Predictor, answer_features
from nestling.text.messages import Message


@dataclass(frozen=True)
class Attempt:
    """An answer to a prompt that may carry a check."""

    messages: Sequence[Message]
    completion: Completion
    check: Mapping[str, Any] | None

    @property
    def answer(self) -> Answer:
        return Answer(self.messages, self.completion.text, self.completion.finished)


class Term(Protocol):
    """A reward term: one number per attempt."""

    name: str

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]: ...


class LearnedScore:
    """The reward model's normalised score, clipped to +-``clip`` so that no answer can buy everything with it."""

    name = "learned"

    def __init__(
        self, scorer: Scorer, clip: float = 5.0, row_tokens: int = 2048, workers: Workers | None = None
    ) -> None:
        self.scorer, self.clip, self.row_tokens = scorer, clip, row_tokens
        self.workers = workers or Workers()

    @torch.no_grad()
    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        groups = [
            (list(prompt), [a.completion.token_ids for a in of_prompt])
            for prompt, of_prompt in itertools.groupby(attempts, key=lambda a: a.completion.prompt_ids)
        ]
        lengths = [len(prompt) + sum(map(len, answers)) for prompt, answers in groups]

        def score(_: int, indices: list[int]) -> dict[int, list[float]]:
            row = [groups[i] for i in indices]
            packed = pack_candidates(row, self.scorer.decoder.device)
            raw = self.scorer(packed.ids, packed.layout, packed.last)
            own = self.scorer.normalise(raw).clamp(-self.clip, self.clip)
            parts = own.split([len(answers) for _, answers in row])
            return {index: part.tolist() for index, part in zip(indices, parts, strict=True)}

        rows = self.workers.map(score, deal_rows(lengths, self.row_tokens, self.workers.count))
        scores = {index: values for row in rows for index, values in row.items()}
        return [value for index in range(len(groups)) for value in scores[index]]


class PeopleScore:
    """What people's scores promise (``rewards.predictor``), clipped to +-``cap``: a few scores must not buy everything.

    ``decoder`` is the frozen network whose states the predictor reads, not the policy that is being trained.
    """

    name = "people"

    def __init__(
        self,
        decoder: Decoder,
        predictor: Predictor,
        cap: float,
        row_tokens: int = 2048,
        workers: Workers | None = None,
    ) -> None:
        self.decoder, self.predictor, self.cap, self.row_tokens = decoder, predictor, cap, row_tokens
        self.workers = workers or Workers()

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        groups = [
            (prompt, [a.completion.token_ids for a in of_prompt])
            for prompt, of_prompt in itertools.groupby(attempts, key=lambda a: a.completion.prompt_ids)
        ]
        features = answer_features(self.decoder, groups, self.row_tokens, self.workers)
        merits: list[float] = self.predictor.merit(features).clamp(-self.cap, self.cap).tolist()
        return merits


class CheckScore:
    """The graded verdict of the check that came with the prompt, in [0, 1]; 0 without one."""

    name = "check"

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        return [judge(dict(a.check), a.answer).score if a.check else 0.0 for a in attempts]


class Unfinished:
    """1 for an answer that was cut before it ended by itself: the weight makes it a penalty."""

    name = "unfinished"

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        return [0.0 if a.completion.finished else 1.0 for a in attempts]


class Looping:
    """1 for an answer that repeats itself: the weight makes it a penalty."""

    name = "looping"

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        # An unfinished answer has its own term, so the text alone is judged here.
        texts = [Answer(a.messages, a.completion.text, True) for a in attempts]
        return [0.0 if judge({"name": "ends_without_loop"}, text).passed else 1.0 for text in texts]


@dataclass(frozen=True)
class RewardMix:
    """A weighted sum of terms."""

    terms: Sequence[tuple[Term, float]]

    def __call__(self, attempts: Sequence[Attempt]) -> tuple[list[float], dict[str, list[float]]]:
        """Returns (total per attempt, unweighted values of each term by name)."""
        values = {term.name: term(attempts) for term, _ in self.terms}
        totals = [
            sum(weight * values[term.name][i] for term, weight in self.terms) for i in range(len(attempts))
        ]
        return totals, values


RULES: tuple[tuple[type[CheckScore | Unfinished | Looping], float], ...] = (
    (CheckScore, 1.0), (Unfinished, -1.0), (Looping, -0.5),
)  # fmt: skip


def rule_terms() -> list[tuple[Term, float]]:
    """The rules that label rankings; PPO's weights start from the same values and can be set."""
    return [(kind(), weight) for kind, weight in RULES]

"""Whether a version likes what people like: its likelihoods of answers that people have compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from nestling.compute.workers import Workers
from nestling.data.packing import deal_rows
from nestling.errors import DataError
from nestling.evaluation.compare import PairedGain
from nestling.evaluation.intervals import resample_difference
from nestling.model.hf_folder import LoadedModel
from nestling.model.rows import pack_answers
from nestling.model.vocabulary import token_logprobs
from nestling.text.tokenizer import Tokenizer

ROW_TOKENS = 2048


@dataclass(frozen=True)
class ComparedPair:
    """Two answers to one prompt as token ids, the one that people preferred first; ``person`` who did, or whatever else
    pairs have in common that are alike."""

    prompt: list[int]
    better: list[int]
    worse: list[int]
    person: str


def compared_pairs(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, longest: int
) -> list[ComparedPair]:
    """The pairs of ranking rows of which one answer is better. What is longer than ``longest`` tokens, or what the
    model's template has no form for, is left out."""
    found = []
    for row in rows:
        try:
            prompt = tokenizer.render_prompt(row["prompt"])
        except DataError:
            continue
        finished = row.get("finished") or [True] * len(row["ranks"])
        answers = [
            tokenizer.encode_answer(_text(answer)) + ([tokenizer.eos_id] if ended else [])
            for answer, ended in zip(row["completions"], finished, strict=True)
        ]
        for (rank_a, a), (rank_b, b) in combinations(zip(row["ranks"], answers, strict=True), 2):
            better, worse = (a, b) if rank_a < rank_b else (b, a)
            if rank_a != rank_b and better and worse and len(prompt) + max(len(a), len(b)) <= longest:
                found.append(
                    ComparedPair(prompt, better, worse, str(row.get("session") or row.get("template") or ""))
                )
    return found


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[0]["content"])


@torch.no_grad()
def preferences(
    model: LoadedModel, pairs: Sequence[ComparedPair], workers: Workers | None = None
) -> list[float]:
    """Log-likelihood of each pair's better answer less the worse one's, in nats."""
    workers = workers or Workers()
    groups = [(pair.prompt, [pair.better, pair.worse]) for pair in pairs]
    lengths = [len(prompt) + sum(map(len, answers)) for prompt, answers in groups]

    def likelihoods(_: int, indices: list[int]) -> list[tuple[int, float]]:
        row = pack_answers([groups[i] for i in indices], model.decoder.device)
        hidden = model.decoder(row.ids, row.layout)[row.predictors]
        tokens = token_logprobs(hidden, model.decoder.lm_head.weight, row.targets)
        sums = [part.sum().item() for part in tokens.split(row.counts)]
        return [(index, sums[2 * at] - sums[2 * at + 1]) for at, index in enumerate(indices)]

    model.decoder.eval()
    found = dict(
        entry
        for row in workers.map(likelihoods, deal_rows(lengths, ROW_TOKENS, workers.count))
        for entry in row
    )
    return [found[index] for index in range(len(pairs))]


def agreement(margins: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Of each pair 1 where the version has moved towards the better answer since the ``reference`` (both margins in
    nats), 0 where away from it, one half where it stands still.

    That is the sign of DPO's implicit reward (Rafailov et al. 2023): what is likelier by its wording alone counts for
    nothing.
    """
    return [
        0.5 + ((own > before) - (own < before)) / 2 for own, before in zip(margins, reference, strict=True)
    ]


def judged_gain(
    candidate: Sequence[float], incumbent: Sequence[float], pairs: Sequence[ComparedPair]
) -> PairedGain:
    """What the candidate gains in agreement with people, resampled by person: one person's judgments are alike."""
    gains = [new - old for new, old in zip(candidate, incumbent, strict=True)]
    resampled = resample_difference(gains, [pair.person for pair in pairs])
    return PairedGain(resampled, len(gains), sum(g > 0 for g in gains), sum(g < 0 for g in gains))

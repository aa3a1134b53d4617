"""What people will say of an answer, learnt from their scores: many linear heads, whose disagreement is the doubt.

The idea is TAMER's (Knox and Stone 2009): a model of the human signal itself, from which one acts at once, beside the
task's own reward. The heads read the states of a network that is not trained for it, so that fitting takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nestling.compute.workers import Workers
from nestling.data.packing import deal_rows
from nestling.errors import DataError, ModelError
from nestling.generation.best_of import Judge
from nestling.model.decoder import Decoder
from nestling.model.rows import pack_candidates

HEADS = 16
LEAST = 8
"""Scored answers without which nothing is predicted."""
_PENALTIES = tuple(10.0**k for k in range(-1, 6))
_FILE = "predictor.safetensors"


@dataclass(frozen=True)
class Predictor:
    """Linear heads on standardised features of an answer's last token.

    Attributes:
        heads: [H, D + 1] weights and bias; each was fitted to another resampling of the scores.
        centre, scale: [D] of the features.
        usual: the mean score; an answer is worth what it is predicted above it.
        spread: the scores' standard deviation, in which doubt is measured.
    """

    heads: Tensor
    centre: Tensor
    scale: Tensor
    usual: float
    spread: float

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] -> (mean, standard deviation over the heads) of the predicted score, each [N]."""
        x = with_bias((features.double() - self.centre) / self.scale)
        scores = self.usual + x @ self.heads.T
        return scores.mean(1), scores.std(1)

    def merit(self, features: Tensor) -> Tensor:
        """How much better than usual an answer is, [N]; towards 0 where the heads disagree.

        The prediction is shrunk as a normal prior of the scores' spread would have it: by s^2 / (s^2 + doubt^2).
        """
        mean, doubt = self.predict(features)
        return (mean - self.usual) * self.spread**2 / (self.spread**2 + doubt**2)

    def save(self, folder: Path) -> None:
        """Into a version's folder, beside the weights whose states it reads."""
        told = {"usual": _exact(self.usual), "spread": _exact(self.spread)}
        tensors = {"heads": self.heads, "centre": self.centre, "scale": self.scale}
        save_file({name: t.contiguous() for name, t in (tensors | told).items()}, folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> Predictor | None:
        """That of a version's folder; None where it has none.

        Raises:
            ModelError: the file is damaged.
        """
        path = folder / _FILE
        if not path.exists():
            return None
        try:
            # Copied, as in the file they lie as they come, and products of such memory may differ in the last bit.
            found = {name: tensor.clone() for name, tensor in load_file(path).items()}
            return cls(
                found["heads"], found["centre"], found["scale"], found["usual"].item(), found["spread"].item()
            )
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"the predictor cannot be read: {error}.", where=str(path)) from error


def fit_predictor(
    features: Tensor, scores: Tensor, weights: Tensor | None = None, seed: int = 0
) -> Predictor:
    """Fit the heads, each to scores drawn with replacement, by ridge regression.

    How strongly weights are held down is chosen on all scores by generalised cross-validation (Golub et al. 1979).

    Args:
        features: [N, D]. scores: [N]. weights: [N], what each counts; 1 unless given.

    Raises:
        DataError: too few scores, or all alike.
    """
    count = len(scores)
    if count < LEAST or float(scores.std()) == 0:
        raise DataError(
            f"{count} scores, or scores that are all alike, predict nothing.",
            remedy=f"Collect at least {LEAST} that differ.",
        )
    features, scores = features.double(), scores.double()
    weights = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
    usual = float((weights * scores).sum() / weights.sum())
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = with_bias((features - centre) / scale), scores - usual
    penalty = min(_PENALTIES, key=lambda candidate: _cross_validation(x, y, weights, candidate))
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for _ in range(HEADS):
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator).bincount(
            minlength=count
        )
        heads.append(_ridge(x, y, drawn.double(), penalty))
    return Predictor(torch.stack(heads), centre, scale, usual, float(scores.std()))


def _exact(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def _ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Solved in the space of the samples, of which there are often fewer than features."""
    held = penalty * torch.ones(x.shape[1], dtype=x.dtype)
    held[-1] = 1e-3 * penalty  # the bias is hardly held down
    root = weights.sqrt()[:, None]
    scaled = root * x / held
    gram = scaled @ (root * x).T + torch.eye(len(x), dtype=x.dtype)
    return scaled.T @ torch.linalg.solve(gram, root[:, 0] * y)


def _cross_validation(x: Tensor, y: Tensor, weights: Tensor, penalty: float) -> float:
    root = weights.sqrt()[:, None]
    values, vectors = torch.linalg.eigh((root * x) @ (root * x).T)
    kept = values.clamp_min(0) / (values.clamp_min(0) + penalty)
    target = vectors.T @ (root[:, 0] * y)
    residual = ((1 - kept) * target).square().sum()
    return float(residual / (1 - kept.sum() / len(y)).clamp_min(1e-3).square())


@torch.no_grad()
def answer_features(
    decoder: Decoder, groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], row_tokens: int = 2048,
    workers: Workers | None = None,
) -> Tensor:  # fmt: skip
    """States [answers, hidden_size] fp32 of the last token of every answer, in order.

    Args:
        groups: (prompt, answers to it) as token ids.
    """
    workers = workers or Workers()
    lengths = [len(prompt) + sum(map(len, answers)) for prompt, answers in groups]

    def states(_: int, indices: list[int]) -> list[tuple[int, Tensor]]:
        chosen = [groups[i] for i in indices]
        packed = pack_candidates(chosen, decoder.device)
        last = decoder(packed.ids, packed.layout)[packed.last].float().cpu()
        return list(zip(indices, last.split([len(answers) for _, answers in chosen]), strict=True))

    found = dict(
        entry for row in workers.map(states, deal_rows(lengths, row_tokens, workers.count)) for entry in row
    )
    return torch.cat([found[index] for index in range(len(groups))])


def judge_by(predictor: Predictor, decoder: Decoder, workers: Workers | None = None) -> Judge:
    """A judge for ``generation.best_of``: the merit that people's scores promise."""

    def judge(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        merits: list[float] = predictor.merit(
            answer_features(decoder, [(prompt, answers)], workers=workers)
        ).tolist()
        return merits

    return judge

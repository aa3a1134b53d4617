"""The reward model: learn scores from rankings, every prompt's candidates in one packed pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from nestling.compute.workers import Workers
from nestling.model.rows import pack_candidates
from nestling.model.scorer import Scorer
from nestling.objectives.ranking import all_pairs_nll, pair_accuracy, plackett_luce_nll
from nestling.training.learner import Loss
from nestling.training.optimizer import ParameterGroup, trainable
from nestling.training.planned import FitReport, OnStep, PlannedConfig, PlannedStage, require_data, run_plan
from nestling.training.trained_part import choose_trained
from nestling.workspace.events import EventLog

LOSSES = {"plackett-luce": plackett_luce_nll, "pairs": all_pairs_nll}


class RewardModelConfig(PlannedConfig):
    """Reward model training."""

    loss: Literal["plackett-luce", "pairs"] = Field("pairs", description="Likelihood of the ranking.")
    head_learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak learning rate of the scalar head.")


@dataclass(frozen=True)
class RankedIds:
    """One prompt's candidates as token ids; ranks [K], 1 is best, equal ranks tie.

    ``weight`` is what it counts: less where its rater is less reliable.
    """

    prompt: list[int]
    completions: list[list[int]]
    ranks: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.completions))


class RewardModelStage(PlannedStage[Scorer, RankedIds]):
    """The stage: mean over pairs (or sum over choices) within a prompt, then weighted mean over prompts."""

    name = "reward_model"

    def __init__(
        self, scorer: Scorer, rankings: Sequence[RankedIds], validation: Sequence[RankedIds],
        config: RewardModelConfig, folder: Path, workers: Workers | None = None,
    ) -> None:  # fmt: skip
        self.loss = LOSSES[config.loss]
        trunk, head = trainable(scorer.decoder.model, "decoder.model."), trainable(scorer.head, "head.")
        groups = [
            ParameterGroup(trunk, config.learning_rate, config.weight_decay),
            ParameterGroup(head, config.head_learning_rate),
        ]
        super().__init__(scorer, rankings, validation, config, groups, folder, workers)

    def length(self, item: RankedIds) -> int:
        return len(item)

    def weight(self, items: Sequence[RankedIds]) -> float:
        return sum(item.weight for item in items)

    def row_loss(self, network: Scorer, items: Sequence[RankedIds]) -> Loss:
        device = network.decoder.device
        row = pack_candidates([(r.prompt, r.completions) for r in items], device)
        scores = network(row.ids, row.layout, row.last).split([len(r.ranks) for r in items])
        total = torch.zeros((), device=device)
        right = pairs = 0
        for ranking, own in zip(items, scores, strict=True):
            ranks = torch.tensor(ranking.ranks, device=device)
            total = total + ranking.weight * self.loss(own, ranks)
            good, count = pair_accuracy(own.detach(), ranks)
            right, pairs = right + good, pairs + count
        return Loss(total, self.weight(items), {"pair_accuracy": (right, pairs)})


def train_reward_model(
    scorer: Scorer,
    rankings: Sequence[RankedIds],
    validation: Sequence[RankedIds],
    config: RewardModelConfig,
    folder: Path,
    events: EventLog,
    on_step: OnStep | None = None,
    checkpoint_seconds: float = 60.0,
    workers: Workers | None = None,
) -> FitReport:
    """Train ``scorer`` in place and leave it with the weights of lowest validation loss, not yet normalised.

    Raises:
        DataError: no usable ranking (of two different ranks) fits a row.
        TrainingStopped: the loss is no longer finite.
    """
    context = scorer.decoder.config.context_length
    fits = lambda r: len(r) <= config.row_tokens and r.longest <= context
    fitting, held = ([r for r in part if fits(r)] for part in (rankings, validation))
    too_long = len(rankings) + len(validation) - len(fitting) - len(held)
    usable, held = ([r for r in part if len(set(r.ranks)) > 1] for part in (fitting, held))
    teaches = bool(usable) and bool(held)
    require_data("rankings", len(rankings), len(validation), teaches, config.row_tokens)
    choose_trained(scorer.decoder, config.frozen_blocks)
    stage = RewardModelStage(scorer, usable, held, config, folder, workers)
    return run_plan(stage, too_long, folder, events, on_step, checkpoint_seconds)

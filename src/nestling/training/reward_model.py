"""The reward model: learn scores from rankings, every prompt's candidates in one packed pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from nestling.errors import DataError
from nestling.model.rows import pack_candidates
from nestling.model.scorer import Scorer
from nestling.objectives.ranking import all_pairs_nll, pair_accuracy, plackett_luce_nll
from nestling.training.best import BestWeights
from nestling.training.learner import Learner, Loss
from nestling.training.loop import fit
from nestling.training.optimizer import MasterAdamW, ParameterGroup
from nestling.training.plan import plan_steps
from nestling.training.schedule import rate_scale
from nestling.training.settings import OptimizerConfig
from nestling.training.sft import trainable
from nestling.workspace.events import EventLog

LOSSES = {"plackett-luce": plackett_luce_nll, "pairs": all_pairs_nll}


class RewardModelConfig(OptimizerConfig):
    """Reward model training."""

    loss: Literal["plackett-luce", "pairs"] = Field("pairs", description="Likelihood of the ranking.")
    head_learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak learning rate of the scalar head.")
    max_tokens: int = Field(250_000, ge=1, description="Tokens seen at most, every epoch counted.")
    epochs: int = Field(2, ge=1, description="Passes over the rankings at most.")
    row_tokens: int = Field(
        2048, ge=16, description="Tokens of a micro-batch: whole rankings packed end to end."
    )
    batch_tokens: int = Field(2048, ge=16, description="Tokens of an optimizer step, as several rows.")
    validate_every: int = Field(10, ge=1, description="Steps between validations; the lowest loss is kept.")
    seed: int = Field(0, ge=0, description="Order of the data.")


@dataclass(frozen=True)
class RankedIds:
    """One prompt's candidates as token ids; ranks [K], 1 is best, equal ranks tie."""

    prompt: list[int]
    completions: list[list[int]]
    ranks: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class RewardModelReport:
    first_loss: float
    best_loss: float
    best_step: int
    steps: int
    tokens: int
    too_long: int
    still_falling: bool


class RewardModelStage:
    """The stage: mean over pairs (or choices) within a prompt, then mean over prompts."""

    name = "reward_model"

    def __init__(
        self, scorer: Scorer, rankings: Sequence[RankedIds], validation: Sequence[RankedIds],
        config: RewardModelConfig, folder: Path,
    ) -> None:  # fmt: skip
        self.scorer, self.rankings, self.validation, self.config = scorer, rankings, validation, config
        self.plan = self._plan(rankings, config.batch_tokens, config.max_tokens, config.epochs, config.seed)
        trunk, head = trainable(scorer.decoder.model, "decoder.model."), trainable(scorer.head, "head.")
        groups = [
            ParameterGroup(trunk, config.learning_rate, config.weight_decay),
            ParameterGroup(head, config.head_learning_rate),
        ]
        self.learner = Learner(MasterAdamW(groups), config.max_grad_norm)
        self.best = BestWeights(folder, dict(trunk | head))

    def _plan(
        self, rankings: Sequence[RankedIds], batch: int, budget: int, epochs: int, seed: int
    ) -> list[list[list[int]]]:
        return plan_steps(
            [len(r) for r in rankings], row_tokens=self.config.row_tokens, batch_tokens=batch,
            token_budget=budget, epochs=epochs, seed=seed,
        )  # fmt: skip

    @property
    def total_steps(self) -> int:
        return len(self.plan)

    @property
    def tokens(self) -> int:
        return sum(len(self.rankings[i]) for step in self.plan for row in step for i in row)

    def row_loss(self, rankings: Sequence[RankedIds]) -> Loss:
        """Loss of several prompts' candidates, computed in one pass."""
        device = self.scorer.decoder.device
        row = pack_candidates([(r.prompt, r.completions) for r in rankings], device)
        scores = self.scorer(row.ids, row.layout, row.last).split([len(r.ranks) for r in rankings])
        total = torch.zeros((), device=device)
        right = pairs = 0
        for ranking, own in zip(rankings, scores, strict=True):
            ranks = torch.tensor(ranking.ranks, device=device)
            total = total + LOSSES[self.config.loss](own, ranks)
            good, count = pair_accuracy(own.detach(), ranks)
            right, pairs = right + good, pairs + count
        return Loss(total, len(rankings), {"pair_accuracy": (right, pairs)})

    def step(self, step: int) -> dict[str, float]:
        if step == 0:
            self.best.record(0, self.validate()["validation_loss"])
        rows = self.plan[step]
        scale = rate_scale(step, self.total_steps, self.config.warmup_steps, self.config.schedule)
        metrics = self.learner.update(
            rows, sum(map(len, rows)), lambda row: self.row_loss([self.rankings[i] for i in row]), scale
        )
        if (step + 1) % self.config.validate_every == 0 or step + 1 == self.total_steps:
            metrics |= self.validate()
            self.best.record(step + 1, metrics["validation_loss"])
        return metrics

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss and pair accuracy on the validation rankings."""
        plan = self._plan(self.validation, self.config.row_tokens, sum(map(len, self.validation)), 1, 0)
        losses = [self.row_loss([self.validation[i] for i in row]) for step in plan for row in step]
        right, pairs = (sum(loss.metrics["pair_accuracy"][i] for loss in losses) for i in (0, 1))
        return {
            "validation_loss": sum(loss.total.item() for loss in losses) / sum(loss.count for loss in losses),
            "validation_pair_accuracy": right / max(1, pairs),
        }

    def state(self) -> dict[str, Any]:
        return {"best": self.best.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best.load_state(state["best"])


def train_reward_model(
    scorer: Scorer,
    rankings: Sequence[RankedIds],
    validation: Sequence[RankedIds],
    config: RewardModelConfig,
    folder: Path,
    events: EventLog,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    checkpoint_seconds: float = 60.0,
) -> RewardModelReport:
    """Train ``scorer`` in place and leave it with the weights of lowest validation loss, not yet normalised.

    Raises:
        DataError: no usable ranking (of two different ranks) fits a row.
    """
    usable = [r for r in rankings if len(r) <= config.row_tokens and len(set(r.ranks)) > 1]
    held = [r for r in validation if len(r) <= config.row_tokens and len(set(r.ranks)) > 1]
    if not usable or not held:
        raise DataError(
            f"no ranking fits row_tokens = {config.row_tokens} and tells candidates apart "
            f"({len(rankings)} for training, {len(validation)} for validation).",
            remedy="Add rankings or raise reward_model.row_tokens.",
        )
    too_long = sum(len(r) > config.row_tokens for r in rankings)
    if too_long:
        events.append("samples_left_out", stage="reward_model", count=too_long, longer_than=config.row_tokens)
    stage = RewardModelStage(scorer, usable, held, config, folder)
    fit(
        stage,
        folder,
        events,
        device=scorer.decoder.device,
        on_step=on_step,
        checkpoint_seconds=checkpoint_seconds,
    )
    stage.best.restore()
    history, best = stage.best.history, stage.best
    return RewardModelReport(
        history[0][1], best.loss, best.step, stage.total_steps, stage.tokens, too_long, best.still_falling
    )

"""What SFT and reward model share: a fixed plan of data, validations, and the weights of the lowest loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from nestling.compute.workers import Workers
from nestling.data.packing import deal
from nestling.errors import DataError
from nestling.training.best import BestWeights
from nestling.training.learner import Learner, Loss
from nestling.training.loop import fit
from nestling.training.optimizer import ParameterGroup
from nestling.training.plan import plan_steps
from nestling.training.schedule import rate_scale
from nestling.training.settings import OptimizerConfig
from nestling.workspace.events import EventLog

Network = TypeVar("Network", bound=nn.Module)
Item = TypeVar("Item")
OnStep = Callable[[int, int, dict[str, float]], None]


class PlannedConfig(OptimizerConfig):
    """How much data a stage sees, and in what pieces."""

    max_tokens: int = Field(250_000, ge=1, description="Tokens seen at most, every epoch counted.")
    epochs: int = Field(2, ge=1, description="Passes over the data at most.")
    row_tokens: int = Field(
        2048, ge=16, description="Tokens of a micro-batch: whole items packed end to end."
    )
    batch_tokens: int = Field(2048, ge=16, description="Tokens of an optimizer step, as several rows.")
    validate_every: int = Field(10, ge=1, description="Steps between validations; the lowest loss is kept.")
    seed: int = Field(0, ge=0, description="Order of the data.")


def require_data(what: str, given: int, held: int, fitting: bool, limit: int) -> None:
    """Refuse to train on nothing, saying which of the three reasons it is.

    Args:
        what: "samples", "rankings".
        given, held: how many there are to train and to validate on.
        limit: the longest row in tokens.
        fitting: whether something to learn from is left of both when what is too long is left out.

    Raises:
        DataError: there is nothing to train or to validate on.
    """
    if not given:
        few = f"there are no {what} to train on: {held} are kept apart for validation."
        raise DataError(few, remedy="Add data, or keep a smaller share for validation.")
    if not held:
        few = f"{given} {what} are too few to keep some apart for validation."
        raise DataError(few, remedy="Add data.")
    if not fitting:
        raise DataError(
            f"none of the {given} {what} for training or none of the {held} for validation teaches anything: "
            f"each is longer than a row may be ({limit} tokens), or has nothing to learn from.",
            remedy="Raise row_tokens, or look at the data with `nestling data show`.",
        )


@dataclass(frozen=True)
class FitReport:
    """What a run did. Losses are on the validation set, in nats per trained token (SFT) or per prompt (rankings).

    ``loss`` is that of the weights that were kept, ``interpolation`` of the way from the first to the best.
    """

    first_loss: float
    best_loss: float
    loss: float
    best_step: int
    steps: int
    tokens: int
    too_long: int
    still_falling: bool
    interpolation: float = 1.0

    @property
    def remark(self) -> str:
        end = "It was still falling at the end: more data or epochs may help." if self.still_falling else ""
        long = f"{self.too_long} samples fit no row and were left out." if self.too_long else ""
        fell = f"Validation loss {self.first_loss:.3f} -> {self.best_loss:.3f} at step {self.best_step}."
        kept = f"Kept: weights {self.interpolation:g} of the way there, {self.loss:.3f}."
        return " ".join(part for part in (long, fell, kept if self.interpolation < 1 else "", end) if part)


class PlannedStage(ABC, Generic[Network, Item]):
    """A stage of the training loop (``loop.Stage``) over a plan made before the first step.

    Subclasses say what a row's loss is, how many items of it count, and what a validation reports.

    Raises:
        DataError: the token budget is smaller than a row.
    """

    name: str

    def __init__(
        self, network: Network, items: Sequence[Item], validation: Sequence[Item], config: PlannedConfig,
        groups: Sequence[ParameterGroup], folder: Path, workers: Workers | None = None,
    ) -> None:  # fmt: skip
        self.items, self.config = items, config
        self.plan = plan_steps(
            [self.length(item) for item in items], row_tokens=config.row_tokens, batch_tokens=config.batch_tokens,
            token_budget=config.max_tokens, epochs=config.epochs, seed=config.seed,
        )  # fmt: skip
        if not self.plan:
            raise DataError(
                f"max_tokens = {config.max_tokens} does not hold one row of the data.",
                remedy=f"Raise max_tokens, or lower row_tokens (now {config.row_tokens}).",
            )
        lengths, size = [self.length(item) for item in validation], config.row_tokens
        held = plan_steps(
            lengths, row_tokens=size, batch_tokens=size, token_budget=sum(lengths), epochs=1, seed=0
        )
        self.validation_rows = [[validation[i] for i in row] for step in held for row in step]
        self.learner = Learner(network, groups, config.max_grad_norm, workers)
        trained: dict[str, Tensor] = {n: p for group in groups for n, p in group.parameters.items()}
        self.best = BestWeights(folder, trained)

    @abstractmethod
    def length(self, item: Item) -> int:
        """Tokens of an item."""

    @abstractmethod
    def weight(self, items: Sequence[Item]) -> float:
        """What the loss of a step is divided by: trained tokens, prompts."""

    @abstractmethod
    def row_loss(self, network: Network, items: Sequence[Item]) -> Loss:
        """Loss of the items of one row, computed by ``network`` in one pass."""

    @property
    def total_steps(self) -> int:
        return len(self.plan)

    @property
    def tokens(self) -> int:
        return sum(self.length(self.items[i]) for step in self.plan for row in step for i in row)

    def step(self, step: int) -> dict[str, float]:
        if step == 0:
            self.best.record(0, self.validate()["validation_loss"])
        scale = rate_scale(step, self.total_steps, self.config.warmup_steps, self.config.schedule)
        metrics = self.update(self.plan[step], scale)
        if (step + 1) % self.config.validate_every == 0 or step + 1 == self.total_steps:
            metrics |= self.validate()
            self.best.record(step + 1, metrics["validation_loss"])
        return metrics

    def update(self, rows: Sequence[Sequence[int]], scale: float) -> dict[str, float]:
        """One update on these rows, each of items by their indices."""
        dealt = [part for row in rows for part in self.parts(row, len(rows))]
        return self.learner.update(dealt, sum(map(self.weight, dealt)), self.row_loss, scale)

    def parts(self, row: Sequence[int], rows: int) -> list[list[Item]]:
        """The items of a row, in pieces where a step has fewer rows than there are workers."""
        pieces = deal([self.length(self.items[i]) for i in row], -(-self.learner.workers.count // rows))
        return [[self.items[row[at]] for at in piece] for piece in pieces]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss on the validation set, and the metrics of its rows as means."""
        networks = self.learner.networks
        losses = self.learner.workers.map(
            lambda worker, row: self.row_loss(networks[worker], row), self.validation_rows
        )
        means = {"loss": sum(loss.total.item() for loss in losses) / sum(loss.count for loss in losses)}
        for name in losses[0].metrics:
            total, count = (sum(loss.metrics[name][i] for loss in losses) for i in (0, 1))
            means[name] = total / max(1, count)
        return {f"validation_{name}": value for name, value in means.items()}

    def state(self) -> dict[str, Any]:
        return {"best": self.best.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best.load_state(state["best"])


def run_plan(
    stage: PlannedStage[Any, Any], too_long: int, folder: Path, events: EventLog, on_step: OnStep | None,
    checkpoint_seconds: float,
) -> FitReport:  # fmt: skip
    """Go through the plan and leave the network with the weights of lowest validation loss.

    ``too_long``: samples left out before, to be counted and said.

    Raises:
        TrainingStopped: the loss is no longer finite.
    """
    if too_long:
        events.append("samples_left_out", stage=stage.name, count=too_long)
    fit(stage, folder, events, on_step=on_step, checkpoint_seconds=checkpoint_seconds)
    best = stage.best
    best.restore()
    return FitReport(
        first_loss=best.history[0][1],
        best_loss=best.loss,
        loss=best.loss,
        best_step=best.step,
        steps=stage.total_steps,
        tokens=stage.tokens,
        too_long=too_long,
        still_falling=best.still_falling,
    )

"""Supervised fine-tuning on conversations: packed rows, loss on the assistant's tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from nestling.errors import DataError
from nestling.model.decoder import Decoder
from nestling.model.hf_folder import LoadedModel
from nestling.model.lora import add_lora, merge_lora
from nestling.model.rows import Row, pack_row
from nestling.model.vocabulary import token_logprobs
from nestling.text.samples import TokenSample
from nestling.training.best import BestWeights
from nestling.training.learner import Learner, Loss
from nestling.training.loop import fit
from nestling.training.optimizer import MasterAdamW, ParameterGroup
from nestling.training.plan import plan_steps
from nestling.training.schedule import rate_scale
from nestling.training.settings import OptimizerConfig
from nestling.workspace.events import EventLog


class SFTConfig(OptimizerConfig):
    """Supervised fine-tuning."""

    max_tokens: int = Field(250_000, ge=1, description="Tokens seen at most, every epoch counted.")
    epochs: int = Field(2, ge=1, description="Passes over the data at most.")
    row_tokens: int = Field(
        2048, ge=16, description="Tokens of a micro-batch: conversations packed end to end."
    )
    batch_tokens: int = Field(2048, ge=16, description="Tokens of an optimizer step, as several rows.")
    validate_every: int = Field(10, ge=1, description="Steps between validations; the lowest loss is kept.")
    seed: int = Field(0, ge=0, description="Order of the data.")


@dataclass(frozen=True)
class SFTReport:
    """What a run did: losses are nats per trained token on the validation set."""

    first_loss: float
    best_loss: float
    best_step: int
    steps: int
    tokens: int
    too_long: int
    still_falling: bool

    @property
    def remark(self) -> str:
        end = "It was still falling at the end: more data or epochs may help." if self.still_falling else ""
        long = f"{self.too_long} samples were longer than a row and were left out. " if self.too_long else ""
        fell = f"Validation loss {self.first_loss:.3f} -> {self.best_loss:.3f} at step {self.best_step}."
        return f"{long}{fell} {end}".strip()


def trainable(module: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    """A module's parameters that want gradients, by name."""
    return {prefix + name: p for name, p in module.named_parameters() if p.requires_grad}


def sample_loss(decoder: Decoder, row: Row) -> Loss:
    """Negative log-likelihood of a row's targets."""
    hidden = decoder(row.ids, row.layout)
    logprobs, _ = token_logprobs(hidden[row.predictors], decoder.lm_head.weight, row.targets)
    return Loss(-logprobs.sum(), len(row.targets))


class SFT:
    """The stage. ``samples`` and ``validation`` must each fit a row."""

    name = "sft"

    def __init__(
        self, decoder: Decoder, samples: Sequence[TokenSample], validation: Sequence[TokenSample], config: SFTConfig,
        folder: Path,
    ) -> None:  # fmt: skip
        self.decoder, self.samples, self.validation, self.config = decoder, samples, validation, config
        self.plan = plan_steps(
            [len(s.ids) for s in samples], row_tokens=config.row_tokens, batch_tokens=config.batch_tokens,
            token_budget=config.max_tokens, epochs=config.epochs, seed=config.seed,
        )  # fmt: skip
        parameters = trainable(decoder)
        group = ParameterGroup(parameters, config.learning_rate, config.weight_decay)
        self.learner = Learner(MasterAdamW([group]), config.max_grad_norm)
        self.best = BestWeights(folder, dict(parameters))

    @property
    def total_steps(self) -> int:
        return len(self.plan)

    @property
    def tokens(self) -> int:
        return sum(len(self.samples[i].ids) for step in self.plan for row in step for i in row)

    def step(self, step: int) -> dict[str, float]:
        if step == 0:
            self.best.record(0, self.validation_loss())
        rows = [pack_row([self.samples[i] for i in row], self.decoder.device) for row in self.plan[step]]
        count = sum(len(row.targets) for row in rows)
        scale = rate_scale(step, self.total_steps, self.config.warmup_steps, self.config.schedule)
        metrics = self.learner.update(rows, count, lambda row: sample_loss(self.decoder, row), scale)
        if (step + 1) % self.config.validate_every == 0 or step + 1 == self.total_steps:
            metrics["validation_loss"] = self.validation_loss()
            self.best.record(step + 1, metrics["validation_loss"])
        return metrics

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean nats per trained token of the validation set."""
        lengths = [len(s.ids) for s in self.validation]
        budget = self.config.row_tokens
        plan = plan_steps(
            lengths, row_tokens=budget, batch_tokens=budget, token_budget=sum(lengths), epochs=1, seed=0
        )
        losses = [
            sample_loss(self.decoder, pack_row([self.validation[i] for i in row], self.decoder.device))
            for step in plan
            for row in step
        ]
        return sum(loss.total.item() for loss in losses) / sum(loss.count for loss in losses)

    def state(self) -> dict[str, Any]:
        return {"best": self.best.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best.load_state(state["best"])


def train_sft(
    model: LoadedModel,
    samples: Sequence[TokenSample],
    validation: Sequence[TokenSample],
    config: SFTConfig,
    folder: Path,
    events: EventLog,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    checkpoint_seconds: float = 60.0,
) -> SFTReport:
    """Fine-tune ``model`` in place and leave it with the weights of lowest validation loss.

    Samples longer than a row are left out, counted in the report and named in the events.

    Raises:
        DataError: nothing to train or to validate on.
        TrainingStopped: the loss is no longer finite.
    """
    fitting = [s for s in samples if len(s.ids) <= config.row_tokens]
    held = [s for s in validation if len(s.ids) <= config.row_tokens]
    if not any(any(s.loss_mask) for s in fitting) or not any(any(s.loss_mask) for s in held):
        raise DataError(
            f"no sample with an assistant turn fits row_tokens = {config.row_tokens} "
            f"({len(samples)} for training, {len(validation)} for validation).",
            remedy="Add data or raise sft.row_tokens.",
        )
    too_long = len(samples) - len(fitting)
    if too_long:
        events.append("samples_left_out", stage="sft", count=too_long, longer_than=config.row_tokens)
    if config.lora:
        add_lora(model.decoder.model, config.lora.rank, config.lora.alpha, seed=config.seed)
        model.decoder.lm_head.weight.requires_grad_(False)
    stage = SFT(model.decoder, fitting, held, config, folder)
    fit(
        stage,
        folder,
        events,
        device=model.decoder.device,
        on_step=on_step,
        checkpoint_seconds=checkpoint_seconds,
    )
    stage.best.restore()
    if config.lora:
        merge_lora(model.decoder)
    history, best = stage.best.history, stage.best
    return SFTReport(
        history[0][1], best.loss, best.step, stage.total_steps, stage.tokens, too_long, best.still_falling
    )

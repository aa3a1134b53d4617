"""Supervised fine-tuning on conversations: packed rows, loss on the assistant's tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from nestling.compute.workers import Workers
from nestling.model.decoder import Decoder
from nestling.model.hf_folder import LoadedModel
from nestling.model.lora import merge_lora
from nestling.model.rows import Row, common_prefix, pack_row
from nestling.model.vocabulary import token_logprobs
from nestling.text.samples import TokenSample
from nestling.training.learner import Loss
from nestling.training.optimizer import ParameterGroup, trainable
from nestling.training.planned import FitReport, OnStep, PlannedConfig, PlannedStage, require_data, run_plan
from nestling.training.settings import LoRAConfig
from nestling.training.trained_part import choose_trained
from nestling.workspace.events import EventLog


class SFTConfig(PlannedConfig):
    """Supervised fine-tuning."""

    lora: LoRAConfig | None = Field(None, description="Low-rank adapters; null trains all weights.")
    interpolation: float = Field(
        1.0, gt=0, le=1, description="How far from the parent's weights to the trained ones the result lies; "
        "below 1, less is forgotten (Wortsman et al. 2022).",
    )  # fmt: skip


def sample_loss(decoder: Decoder, row: Row) -> Loss:
    """Negative log-likelihood of a row's targets."""
    hidden = decoder(row.ids, row.layout)
    logprobs = token_logprobs(hidden[row.predictors], decoder.lm_head.weight, row.targets)
    return Loss(-logprobs.sum(), len(row.targets))


class SFT(PlannedStage[Decoder, TokenSample]):
    """The stage. ``samples`` and ``validation`` must each fit a row."""

    name = "sft"

    def __init__(
        self, decoder: Decoder, samples: Sequence[TokenSample], validation: Sequence[TokenSample], config: SFTConfig,
        folder: Path, workers: Workers | None = None,
    ) -> None:  # fmt: skip
        self.decoder = decoder
        # What all begin with (a system prompt) is computed once a row and counts for nothing more.
        self.common = common_prefix([list(s.ids) for s in samples])
        group = ParameterGroup(trainable(decoder), config.learning_rate, config.weight_decay)
        super().__init__(decoder, samples, validation, config, [group], folder, workers)

    def length(self, item: TokenSample) -> int:
        return max(1, len(item.ids) - self.common)

    def weight(self, items: Sequence[TokenSample]) -> float:
        return sum(sum(item.loss_mask[1:]) for item in items)

    def row_loss(self, network: Decoder, items: Sequence[TokenSample]) -> Loss:
        return sample_loss(network, pack_row(items, network.device))


def train_sft(
    model: LoadedModel,
    samples: Sequence[TokenSample],
    validation: Sequence[TokenSample],
    config: SFTConfig,
    folder: Path,
    events: EventLog,
    on_step: OnStep | None = None,
    checkpoint_seconds: float = 60.0,
    workers: Workers | None = None,
) -> FitReport:
    """Fine-tune ``model`` in place and leave it with the weights of lowest validation loss, or on the way to them.

    Samples longer than a row or the model's context are left out, counted in the report and named in the events.

    Raises:
        DataError: nothing to train or to validate on.
        TrainingStopped: the loss is no longer finite.
    """
    limit = min(config.row_tokens, model.config.context_length)
    fitting, held = ([s for s in part if len(s.ids) <= limit] for part in (samples, validation))
    usable = all(any(any(s.loss_mask) for s in part) for part in (fitting, held))
    require_data("samples", len(samples), len(validation), usable, limit)
    choose_trained(model.decoder, config.frozen_blocks, config.lora, config.seed)
    stage = SFT(model.decoder, fitting, held, config, folder, workers)
    too_long = len(samples) + len(validation) - len(fitting) - len(held)
    report = run_plan(stage, too_long, folder, events, on_step, checkpoint_seconds)
    if config.lora:
        merge_lora(model.decoder, config.interpolation)
        stage.learner.networks = [model.decoder] * len(stage.learner.networks)  # the others are not merged
    elif config.interpolation < 1:
        stage.best.restore(config.interpolation)
    if config.interpolation == 1:
        return report
    return replace(report, interpolation=config.interpolation, loss=stage.validate()["validation_loss"])

"""Learning from judgments directly, without a reward model: DPO from pairs, KTO from thumbs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nestling.compute.workers import Workers
from nestling.data.packing import epoch_order
from nestling.model.decoder import Decoder
from nestling.model.hf_folder import LoadedModel, copy_decoder
from nestling.model.lora import adapters_off, merge_lora
from nestling.model.rows import Group, Row, pack_answers
from nestling.model.vocabulary import token_logprobs
from nestling.objectives.preference import dpo_loss, kto_loss
from nestling.training.learner import Loss
from nestling.training.optimizer import ParameterGroup, trainable
from nestling.training.planned import FitReport, OnStep, PlannedConfig, PlannedStage, require_data, run_plan
from nestling.training.settings import LoRAConfig
from nestling.training.trained_part import choose_trained
from nestling.workspace.events import EventLog


class PreferenceConfig(PlannedConfig):
    """Settings that DPO and KTO share."""

    learning_rate: float = Field(5e-6, gt=0, lt=1, description="Peak learning rate of the policy.")
    lora: LoRAConfig | None = Field(None, description="Low-rank adapters; null trains all weights.")
    beta: float = Field(
        0.1, gt=0, description="How dear it is to leave the reference: the higher, the nearer to it."
    )


class DPOConfig(PreferenceConfig):
    """Direct preference optimisation, from pairs."""

    loss: Literal["sigmoid", "ipo", "hinge"] = Field(
        "sigmoid", description="What is made of a pair's margin."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of pairs that are taken to be the wrong way round (conservative DPO).",
    )
    sft_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of the chosen answer's own loss per token: keeps it from growing unlikely.",
    )


class KTOConfig(PreferenceConfig):
    """Kahneman-Tversky optimisation, from thumbs."""

    good_weight: float = Field(1.0, gt=0, description="Weight of answers labelled good.")
    bad_weight: float = Field(1.0, gt=0, description="Weight of answers labelled bad.")


@dataclass(frozen=True)
class PairIds:
    """Two answers to one prompt as token ids, the better one first; a demonstration has none to beat, and teaches by
    ``sft_coef`` alone."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    weight: float = 1.0

    @property
    def group(self) -> Group:
        return self.prompt, [self.chosen, self.rejected or self.chosen[-1:]]  # a row holds two to each prompt


@dataclass(frozen=True)
class LabelledIds:
    """An answer with its label, and beside it an answer to some other prompt, which shows how far answers in general
    have drifted."""

    prompt: list[int]
    answer: list[int]
    good: bool
    foreign: list[int]
    weight: float = 1.0

    @property
    def group(self) -> Group:
        return self.prompt, [self.answer, self.foreign]


def with_foreign_answers(
    labelled: Sequence[tuple[list[int], list[int], bool, float]], seed: int
) -> list[LabelledIds]:
    """(prompt, answer, good, weight), each with the answer to the next prompt of a shuffled circle beside it."""
    order = epoch_order(len(labelled), seed, 0)
    after = {at: order[(place + 1) % len(order)] for place, at in enumerate(order)}
    return [
        LabelledIds(prompt, answer, good, labelled[after[at]][1], weight)
        for at, (prompt, answer, good, weight) in enumerate(labelled)
    ]


class PolicyAndReference(nn.Module):
    """The policy, and what it was at the start: a frozen copy, or with LoRA the policy with its adapters off."""

    def __init__(self, policy: Decoder, lora: bool) -> None:
        super().__init__()
        self.policy = policy
        frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
        self.reference: Decoder | None = None if lora else copy_decoder(policy, sharing=frozen)

    def forward(self, row: Row) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each of the row's answers as a whole, the policy's and the reference's, fp32 [answers]."""
        own = _likelihoods(self.policy, row)
        with torch.no_grad():
            decoder = self.reference if self.reference is not None else self.policy
            with adapters_off(self.policy) if self.reference is None else nullcontext():
                return own, _likelihoods(decoder, row)


def _likelihoods(decoder: Decoder, row: Row) -> Tensor:
    hidden = decoder(row.ids, row.layout)[row.predictors]
    tokens = token_logprobs(hidden, decoder.lm_head.weight, row.targets)
    return torch.stack([part.sum() for part in tokens.split(row.counts)])


class _AgainstReference(PlannedStage[PolicyAndReference, Any]):
    """What DPO and KTO share: rows of groups, and both networks on them."""

    def __init__(
        self, decoder: Decoder, items: Sequence[Any], validation: Sequence[Any], config: PreferenceConfig,
        folder: Path, workers: Workers | None = None,
    ) -> None:  # fmt: skip
        networks = PolicyAndReference(decoder, config.lora is not None)
        group = ParameterGroup(trainable(decoder, "policy."), config.learning_rate, config.weight_decay)
        super().__init__(networks, items, validation, config, [group], folder, workers)

    def length(self, item: PairIds | LabelledIds) -> int:
        return group_length(item.group)

    def weight(self, items: Sequence[Any]) -> float:
        return sum(item.weight for item in items)

    def weights(self, items: Sequence[Any], like: Tensor) -> Tensor:
        return torch.tensor([item.weight for item in items], device=like.device)

    def likelihoods(self, network: PolicyAndReference, items: Sequence[Any]) -> tuple[Tensor, Tensor, Row]:
        """The policy's and the reference's, [items, 2] each."""
        row = pack_answers([item.group for item in items], network.policy.device)
        own, reference = network(row)
        return own.view(-1, 2), reference.view(-1, 2), row

    @abstractmethod
    def row_loss(self, network: PolicyAndReference, items: Sequence[Any]) -> Loss: ...


class DPO(_AgainstReference):
    """The stage for pairs."""

    name = "dpo"
    config: DPOConfig

    def row_loss(self, network: PolicyAndReference, items: Sequence[PairIds]) -> Loss:
        own, reference, row = self.likelihoods(network, items)
        c = self.config
        compared = torch.tensor([bool(item.rejected) for item in items], device=own.device)
        loss = dpo_loss(
            own[:, 0], own[:, 1], reference[:, 0], reference[:, 1], c.beta, c.loss, c.label_smoothing
        )
        loss = loss * compared
        if c.sft_coef:
            lengths = torch.tensor(row.counts[::2], device=own.device)
            loss = loss - c.sft_coef * own[:, 0] / lengths
        gain, n = (own - reference).detach()[compared], int(compared.sum())
        metrics = {
            "pair_accuracy": (float((gain[:, 0] > gain[:, 1]).sum()), n),
            "margin": (float((gain[:, 0] - gain[:, 1]).sum()), n),
            # Where this falls, DPO buys its margin by making both answers unlikely (Pal et al. 2024).
            "chosen_gain": (float(gain[:, 0].sum()), n),
        }
        return Loss((loss * self.weights(items, loss)).sum(), self.weight(items), metrics)


class KTO(_AgainstReference):
    """The stage for labels. How far answers in general have drifted is the mean over a row's foreign answers."""

    name = "kto"
    config: KTOConfig

    def row_loss(self, network: PolicyAndReference, items: Sequence[LabelledIds]) -> Loss:
        own, reference, _ = self.likelihoods(network, items)
        c, n = self.config, len(items)
        good = torch.tensor([item.good for item in items], device=own.device)
        drift = (own[:, 1] - reference[:, 1]).detach().mean()
        loss = kto_loss(own[:, 0], reference[:, 0], good, drift, c.beta, c.good_weight, c.bad_weight)
        gain = (own - reference)[:, 0].detach()
        metrics = {
            "good_gain": (float(gain[good].sum()), int(good.sum())),
            "bad_gain": (float(gain[~good].sum()), int((~good).sum())),
            "drift": (float(drift) * n, n),
        }
        return Loss((loss * self.weights(items, loss)).sum(), self.weight(items), metrics)


def group_length(group: Group) -> int:
    """Tokens of a prompt and its answers."""
    prompt, answers = group
    return len(prompt) + sum(map(len, answers))


def train_preference(
    model: LoadedModel, items: Sequence[PairIds] | Sequence[LabelledIds],
    validation: Sequence[PairIds] | Sequence[LabelledIds], config: DPOConfig | KTOConfig, folder: Path,
    events: EventLog, on_step: OnStep | None = None, checkpoint_seconds: float = 60.0,
    workers: Workers | None = None,
) -> FitReport:  # fmt: skip
    """Train ``model`` in place by DPO (pairs) or KTO (labels) and leave it with the weights of lowest validation loss.

    Its weights at the start are the reference. What is longer than a row or the model's context is left out and
    counted.

    Raises:
        DataError: nothing to train or to validate on.
        TrainingStopped: the loss is no longer finite.
    """
    context = model.config.context_length
    longest = lambda item: len(item.prompt) + max(map(len, item.group[1]))
    fits = lambda item: group_length(item.group) <= config.row_tokens and longest(item) <= context
    fitting, held = ([item for item in part if fits(item)] for part in (items, validation))
    require_data("judgments", len(items), len(validation), bool(fitting) and bool(held), config.row_tokens)
    choose_trained(model.decoder, config.frozen_blocks, config.lora, config.seed)
    kind = DPO if isinstance(config, DPOConfig) else KTO
    stage = kind(model.decoder, fitting, held, config, folder, workers)
    too_long = len(items) + len(validation) - len(fitting) - len(held)
    report = run_plan(stage, too_long, folder, events, on_step, checkpoint_seconds)
    if config.lora:
        merge_lora(model.decoder)
    return report

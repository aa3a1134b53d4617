"""The networks of PPO: policy, reference, critic."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from nestling.model.decoder import Decoder
from nestling.model.heads import ScalarHead
from nestling.model.hf_folder import LoadedModel, copy_decoder
from nestling.model.lora import adapters_off
from nestling.model.rows import Row
from nestling.model.scorer import Scorer
from nestling.model.vocabulary import token_logprobs, token_logprobs_and_entropy
from nestling.training.optimizer import ParameterGroup, trainable
from nestling.training.ppo.config import PPOConfig
from nestling.training.trained_part import choose_trained


class Networks(nn.Module):
    """Policy with a value head on its own trunk or beside it, and the frozen reference.

    A critic of its own starts as the reward model (Ouyang et al. 2022): where an answer is not measured against others
    to its prompt, its values then are the scores of what has been said so far, and each token is credited with what it
    adds to them. Without a reward model it starts from the policy's trunk.

    With LoRA the reference is the policy with its adapters off and costs no memory. Frozen blocks are the reference's
    as well as the policy's, and a row goes through them once for both and for every update (``begin``).
    """

    def __init__(self, model: LoadedModel, config: PPOConfig, scorer: Scorer | None = None) -> None:
        super().__init__()
        self.config = config
        self.policy = model.decoder
        choose_trained(self.policy, config.frozen_blocks, config.lora, config.seed)
        frozen = {name for name, p in self.policy.named_parameters() if not p.requires_grad}
        self.reference: Decoder | None = None if config.lora else copy_decoder(self.policy, sharing=frozen)
        self.critic: Decoder | None = None
        self.value_head = ScalarHead(model.config.hidden_size, bias=True).to(self.policy.device)
        self.value_is_score = config.critic == "separate" and scorer is not None and config.samples == 1
        if config.critic == "separate":
            self.critic = copy_decoder(scorer.decoder if scorer is not None else model.decoder)
            for parameter in self.critic.model.parameters():
                parameter.requires_grad_(True)
        if self.value_is_score and scorer is not None:
            self.value_head.load_state_dict(scorer.normalised_head(config.learned_weight).state_dict())

    def groups(self) -> list[ParameterGroup]:
        """What is trained at which peak rate."""
        c, critic = self.config, "model" if self.critic is None else "critic"
        head = trainable(self.value_head, "value_head.")
        groups = [
            ParameterGroup(trainable(self.policy, "policy."), c.learning_rate, c.weight_decay),
            ParameterGroup(head, c.critic_learning_rate, network=critic),
        ]
        if self.critic is not None:
            trunk = trainable(self.critic.model, "critic.")
            groups.append(ParameterGroup(trunk, c.critic_trunk_learning_rate, c.weight_decay, network=critic))
        return groups

    def begin(self, row: Row) -> Row:
        """The row behind the frozen blocks, where there are any."""
        if not self.config.frozen_blocks:
            return row
        return replace(row, below=self.policy.model.below(row.ids, row.layout, self.config.frozen_blocks))

    def hidden(self, row: Row) -> Tensor:
        """The policy's states that predict the row's targets, [N, hidden_size]."""
        return self.policy(row.ids, row.layout, row.below)[row.predictors]

    def forward(self, row: Row) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and values of a row's targets, fp32 [N] each."""
        hidden = self.hidden(row)
        logprobs, entropy = token_logprobs_and_entropy(
            hidden, self.policy.lm_head.weight, row.targets, self.config.temperature
        )
        return logprobs, entropy, self.value_head(self.value_features(row, hidden))

    def value_features(self, row: Row, hidden: Tensor) -> Tensor:
        """What the value head reads, [N, hidden_size]. With a zero coefficient no gradient reaches the trunk."""
        if self.critic is not None:
            hidden = self.critic(row.ids, row.layout)[row.predictors]
        return hidden if self.config.value_coef > 0 else hidden.detach()

    @torch.no_grad()
    def reference_logprobs(self, row: Row) -> Tensor:
        """The frozen reference's log-probabilities of a row's targets, fp32 [N]."""
        decoder = self.reference if self.reference is not None else self.policy
        with adapters_off(self.policy) if self.reference is None else nullcontext():
            hidden = decoder(row.ids, row.layout, row.below)[row.predictors]
            return token_logprobs(hidden, decoder.lm_head.weight, row.targets, self.config.temperature)

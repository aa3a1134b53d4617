"""PPO's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nestling.training.schedule import ScheduleName
from nestling.training.settings import LoRAConfig, OptimizerConfig


class PPOConfig(OptimizerConfig):
    """Proximal policy optimisation against a mix of learned score and rules."""

    learning_rate: float = Field(3e-6, gt=0, lt=1, description="Peak learning rate of the policy.")
    schedule: ScheduleName = Field("constant", description="How the rate falls.")
    lora: LoRAConfig | None = Field(None, description="Low-rank adapters; null trains all weights.")
    iterations: int = Field(60, ge=1, description="Rounds of rollouts and updates.")
    prompts: int = Field(16, ge=2, description="Prompts answered in an iteration.")
    samples: int = Field(
        4, ge=1, description="Answers to each prompt; from 2 on, each is measured against the others."
    )
    max_new_tokens: int = Field(64, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(
        1.0, gt=0, le=2, description="Temperature of rollouts, reference and updates alike."
    )
    epochs: int = Field(2, ge=1, description="Passes over an iteration's experience.")
    minibatches: int = Field(2, ge=1, description="Updates in a pass.")
    row_tokens: int = Field(2048, ge=16, description="Tokens of a micro-batch.")
    critic: Literal["shared", "separate"] = Field(
        "shared",
        description="Value head on the policy's own trunk, or on a network of its own, trained whole (more memory); "
        "that starts as the reward model, with one answer to a prompt as its score.",
    )
    critic_learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak learning rate of the value head.")
    critic_trunk_learning_rate: float = Field(
        1e-5, gt=0, lt=1, description="Peak rate of a separate critic's trunk."
    )
    critic_warmup: int = Field(
        4,
        ge=0,
        description="Rollout batches on which a value head is fitted first that does not start as the score; "
        "0 starts it at zero.",
    )
    kl_coef: float = Field(
        0.03, ge=0, description="Cost of a nat of KL to the reference, per token, in the reward."
    )
    kl_target: float | None = Field(
        None, gt=0, description="Summed KL per answer at which an adaptive kl_coef aims; null keeps it fixed."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's lambda.")
    clip: float = Field(0.2, gt=0, lt=1, description="Ratio clip of the policy loss.")
    dual_clip: float | None = Field(3.0, gt=1, description="Bound on the loss of bad actions; null is off.")
    value_clip: float = Field(0.2, gt=0, description="Clip of the value's move in an iteration.")
    value_coef: float = Field(
        0.1, ge=0, description="Weight of the value loss; 0 sends nothing into the trunk."
    )
    demonstration_coef: float = Field(
        0.0, ge=0, description="Weight of the fine-tuning loss on demonstrations in every update; 0 is off."
    )
    demonstration_tokens: int = Field(
        512, ge=16, description="Tokens of demonstrations in an update, about; each worker gets one at least."
    )
    stop_kl: float = Field(
        0.05, gt=0, description="Mean KL to the rollout policy that ends an iteration's updates."
    )
    importance_cap: float | None = Field(
        None, gt=0, description="Truncated correction for rollout-training mismatch; null is off."
    )
    learned_weight: float = Field(
        1.0, ge=0, description="Weight of the reward model's score; 0 for rules alone."
    )
    learned_clip: float = Field(5.0, gt=0, description="Normalised scores are clipped to plus or minus this.")
    people_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of what people's scores promise, where there are any; 0 leaves them out.",
    )
    people_cap: float = Field(0.3, gt=0, description="What they promise is clipped to plus or minus this.")
    check_weight: float = Field(1.0, ge=0, description="Weight of the prompt's own check.")
    unfinished_penalty: float = Field(1.0, ge=0, description="Cost of an answer cut by max_new_tokens.")
    looping_penalty: float = Field(0.5, ge=0, description="Cost of an answer that repeats itself.")
    max_kl: float = Field(
        10.0, gt=0, description="Summed KL per answer to the reference that counts as collapse."
    )
    transcript_every: int = Field(5, ge=1, description="Iterations between saved sample transcripts.")
    seed: int = Field(0, ge=0, description="Order of the prompts and every random draw.")

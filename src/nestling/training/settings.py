"""Settings that several stages share."""

from __future__ import annotations

from pydantic import Field

from nestling.config import Config
from nestling.training.schedule import ScheduleName


class LoRAConfig(Config):
    """Train low-rank adapters instead of all weights."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: float = Field(32.0, gt=0, description="Scale: the adapter's output is multiplied by alpha / rank.")


class OptimizerConfig(Config):
    """What a stage's optimizer moves, and how."""

    frozen_blocks: int = Field(
        0, ge=0, description="Blocks that stay as they are, counted from the input; with them the embeddings "
        "and an output layer tied to those.",
    )  # fmt: skip
    learning_rate: float = Field(3e-5, gt=0, lt=1, description="Peak learning rate of the network.")
    warmup_steps: int = Field(5, ge=0, description="Steps over which the rate rises to its peak.")
    schedule: ScheduleName = Field("cosine", description="How the rate falls afterwards.")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="AdamW's decay of weight matrices.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients of a network are scaled down to this joint norm."
    )

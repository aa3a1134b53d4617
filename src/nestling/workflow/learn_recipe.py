"""The settings of learning from people."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from nestling.config import Config, parse
from nestling.feedback.snapshot import SnapshotRules
from nestling.training.ppo import PPOConfig
from nestling.training.preference import DPOConfig, KTOConfig
from nestling.training.reward_model import RewardModelConfig
from nestling.workflow.gate_rule import GateRule, refuse_halves, refuse_unknown
from nestling.workflow.recipe import (
    EvaluationConfig,
    HardwareConfig,
    RankConfig,
    apply_setting,
    check_behaviours,
    read_yaml,
)

Method = Literal["dpo", "kto", "ppo", "best-of-n"]
HELD_OUT, TRUSTED, ACCOUNTS = "people's held-out judgments", "earlier judgments", "judgments of accounts"


class LearnRecipe(Config):
    """All settings of learning from people. See ``learn.yaml`` for the usual ones with comments."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="Names the run's folder.")
    about: str = Field("", description="One line for people.")
    method: Method = Field(
        "dpo",
        description="dpo and kto train on judgments directly, ppo by a reward model that learns them; best-of-n trains "
        "nothing and chooses among several answers by people's scores.",
    )
    best_of: int = Field(4, ge=2, le=16, description="Answers that best-of-n chooses from.")
    least_new: int = Field(20, ge=1, description="New judgments without which nothing is begun.")
    seed: int = Field(
        0,
        ge=0,
        description="Order of the data and every random draw, also of stages without a seed of their own.",
    )
    hardware: HardwareConfig = Field(HardwareConfig(), description="What to compute with.")
    checkpoint_seconds: float = Field(60.0, ge=0, description="Time between checkpoints of training.")
    snapshot: SnapshotRules = Field(SnapshotRules(), description="Which judgments count.")
    dpo: DPOConfig = Field(DPOConfig(), description="Direct preference optimisation.")
    kto: KTOConfig = Field(KTOConfig(), description="Kahneman-Tversky optimisation.")
    rank: RankConfig = Field(
        RankConfig(), description="Rankings by the checks, mixed in for the reward model."
    )
    reward_model: RewardModelConfig = Field(RewardModelConfig(), description="Reward model.")
    ppo: PPOConfig = Field(PPOConfig(), description="PPO.")
    ppo_prompts: dict[str, NonNegativeInt] = Field(
        default_factory=dict, description="Training prompts that PPO answers beside people's, by behaviour."
    )
    rehearsal: dict[str, NonNegativeInt] = Field(
        default_factory=dict,
        description="Demonstrations of the starter curriculum in PPO's updates, by behaviour.",
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="What the gate asks.")
    gate: GateRule = Field(
        GateRule(), description="What a version may lose; it must gain on people's judgments."
    )

    @model_validator(mode="before")
    @classmethod
    def _seed_of_the_stages(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "seed" not in given:
            return given
        sections = {name: given.get(name, {}) for name in ("dpo", "kto", "reward_model", "ppo")}
        return given | {
            name: {"seed": given["seed"]} | section
            for name, section in sections.items() if isinstance(section, dict)
        }  # fmt: skip


def load_learn_recipe(path: Path | None, settings: Sequence[str] = ()) -> LearnRecipe:
    """The usual settings, or those of a YAML file, with ``section.key=value`` on top.

    Raises:
        ConfigError: an unknown key or behaviour, an impossible value; by place and name.
    """
    values = read_yaml(path or resources.files(__package__) / "learn.yaml")
    for setting in settings:
        apply_setting(values, setting)
    recipe = parse(LearnRecipe, values, str(path or "learn"))
    check_behaviours(recipe.rank.prompts, "learn: rank.prompts", rewarded=True)
    check_behaviours(recipe.ppo_prompts, "learn: ppo_prompts", rewarded=True)
    check_behaviours(recipe.rehearsal, "learn: rehearsal", rewarded=True)
    refuse_unknown(recipe.gate, judged=(TRUSTED, ACCOUNTS))
    refuse_halves(recipe.gate, recipe.evaluation.sizes)
    return recipe

"""A small PPO on a model of random weights, with a reward that any model can find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nestling.compute.workers import Workers
from nestling.generation.side_by_side import SideBySide
from nestling.model.hf_folder import LoadedModel
from nestling.model.scorer import Scorer
from nestling.rewards.terms import Attempt, RewardMix
from nestling.text.samples import TokenSample, training_samples
from nestling.training.ppo import PPO, Networks, PPOConfig, Prompt
from nestling.training.ppo.experience import Trace
from nestling.training.ppo.stage import Minibatch
from test_text_support import assistant, user
from tiny import tiny_model


class Vowels:
    """A reward any model can find: the share of vowels in the answer."""

    name = "vowels"

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        return [sum(c in "aeiou" for c in a.completion.text) / (len(a.completion.text) + 1) for a in attempts]


PROMPTS = [Prompt([user(f"say {w}")]) for w in ("red", "blue", "tree", "bird", "stone")]
SMALL: dict[str, Any] = {
    "iterations": 4, "prompts": 6, "samples": 1, "max_new_tokens": 8, "epochs": 2, "minibatches": 2, "row_tokens": 128,
    "critic_warmup": 2, "learning_rate": 1e-3, "warmup_steps": 0, "transcript_every": 2, "stop_kl": 9.0,
}  # fmt: skip


def make_ppo(
    folder: Path, dtype: torch.dtype = torch.float32, model: LoadedModel | None = None,
    workers: Workers | None = None, scorer: Scorer | None = None, **changes: Any,
) -> PPO:  # fmt: skip
    config = PPOConfig(**SMALL | changes)
    model = model or tiny_model(dtype=dtype)
    networks = Networks(model, config, scorer)
    engine = SideBySide(model, workers or Workers(), max_batch=32)
    mix = RewardMix([(Vowels(), 1.0)])
    return PPO(networks, engine, PROMPTS, mix, config, folder, workers, demonstrations(model))


def experience(ppo: PPO, step: int = 0) -> tuple[list[Attempt], list[Trace], list[Minibatch]]:
    attempts, _ = ppo.roll_out(step)
    minibatches = ppo.partition(attempts, step)
    return attempts, ppo.score(attempts, minibatches)[0], minibatches


def demonstrations(model: LoadedModel) -> list[TokenSample]:
    talks = [
        [user(f"say {word}"), assistant(f"{word} it is")] for word in ("red", "blue", "green", "grey", "pink")
    ]
    return [sample for talk in talks for sample in training_samples(model.tokenizer, talk, "here")]

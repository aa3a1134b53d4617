"""Proximal policy optimisation: ``train_ppo`` and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nestling.compute.workers import Workers
from nestling.errors import DataError
from nestling.generation.side_by_side import SideBySide
from nestling.model.hf_folder import LoadedModel
from nestling.model.lora import merge_lora
from nestling.model.scorer import Scorer
from nestling.rewards.terms import CheckScore, LearnedScore, Looping, PeopleScore, RewardMix, Term, Unfinished
from nestling.text.samples import TokenSample
from nestling.training.loop import fit
from nestling.training.ppo.config import PPOConfig
from nestling.training.ppo.networks import Networks
from nestling.training.ppo.stage import PPO, Prompt
from nestling.workspace.events import EventLog

__all__ = ["PPO", "Networks", "PPOConfig", "Prompt", "reward_mix", "train_ppo"]


def reward_mix(
    config: PPOConfig,
    scorer: Scorer | None,
    workers: Workers | None = None,
    people: PeopleScore | None = None,
) -> RewardMix:
    """The reward the settings ask for: learned score, people's scores and rules, each with its weight."""
    terms: list[tuple[Term, float]] = [
        (CheckScore(), config.check_weight),
        (Unfinished(), -config.unfinished_penalty),
        (Looping(), -config.looping_penalty),
    ]
    if scorer is not None and config.learned_weight > 0:
        learned = LearnedScore(scorer, config.learned_clip, config.row_tokens, workers)
        terms.append((learned, config.learned_weight))
    if people is not None and config.people_weight > 0:
        terms.append((people, config.people_weight))
    return RewardMix(terms)


def rehearsable(
    model: LoadedModel, demonstrations: Sequence[TokenSample], config: PPOConfig
) -> list[TokenSample]:
    """The demonstrations that fit a row and teach anything; none where the settings want none.

    Raises:
        DataError: the settings want some and there are none.
    """
    if config.demonstration_coef == 0:
        return list(demonstrations)
    limit = min(config.row_tokens, model.config.context_length)
    fitting = [s for s in demonstrations if len(s.ids) <= limit and any(s.loss_mask[1:])]
    if not fitting:
        raise DataError(
            f"demonstration_coef is {config.demonstration_coef:g}, but none of {len(demonstrations)} demonstrations "
            f"fits a row of {limit} tokens.",
            remedy="Give demonstrations of behaviours that are not held out, or set demonstration_coef to 0.",
        )
    return fitting


def train_ppo(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    scorer: Scorer | None,
    config: PPOConfig,
    folder: Path,
    events: EventLog,
    *,
    reward: RewardMix | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    checkpoint_seconds: float = 60.0,
    workers: Workers | None = None,
    demonstrations: Sequence[TokenSample] = (),
    people: PeopleScore | None = None,
) -> None:
    """Align ``model`` in place. Its weights at the start are the reference.

    ``reward`` replaces the mix of the settings. ``people`` and ``demonstrations`` take part where ``people_weight`` and
    ``demonstration_coef`` say so.

    Raises:
        DataError: no prompts, or no demonstrations where the settings want some.
        TrainingStopped: NaN or collapse; the last checkpoint is kept.
    """
    if not prompts:
        raise DataError("PPO has no prompts.", remedy="Give prompts, or use the starter curriculum.")
    rehearsed = rehearsable(model, demonstrations, config)
    if left_out := len(demonstrations) - len(rehearsed):
        events.append("samples_left_out", stage=PPO.name, count=left_out)
    networks = Networks(model, config, scorer)
    workers = workers or Workers()
    engine = SideBySide(model, workers, max_batch=config.prompts * config.samples)
    mix = reward or reward_mix(config, scorer, workers, people)
    stage = PPO(networks, engine, prompts, mix, config, folder, workers, rehearsed)
    fit(stage, folder, events, on_step=on_step, checkpoint_seconds=checkpoint_seconds)
    if config.lora:
        merge_lora(model.decoder)

"""Demonstrations inside PPO's updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.compute.workers import Workers
from nestling.errors import DataError
from nestling.model.rows import pack_row
from nestling.rewards.terms import RewardMix
from nestling.text.samples import TokenSample
from nestling.training.ppo import PPOConfig, train_ppo
from nestling.training.ppo.rehearsal import Rehearsal
from nestling.training.sft import sample_loss
from nestling.workspace.events import EventLog
from ppo_support import PROMPTS, SMALL, Vowels, demonstrations, experience, make_ppo
from test_training import CPU
from tiny import tiny_model


@given(tokens=st.integers(16, 400), workers=st.integers(1, 3), updates=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_rehearsal_goes_through_all_demonstrations_before_it_repeats_one(
    tokens: int, workers: int, updates: int
) -> None:
    samples = demonstrations(tiny_model())
    rehearsal = Rehearsal(samples, tokens, workers, 0.5, seed=3, device=CPU)
    seen: list[int] = []
    for number in range(updates):
        rows = rehearsal.of_update(number, 30)
        assert len(rows) == workers
        assert sum(r.weight * len(r.row.targets) for r in rows) == pytest.approx(0.5 * 30)
        seen += [len(r.row.targets) for r in rows]
    whole = len(rehearsal._rows)
    targets = sum(sum(s.loss_mask[1:]) for s in samples)
    for at in range(0, len(seen) - whole + 1, whole):
        assert sum(seen[at : at + whole]) == targets
    again = Rehearsal(samples, tokens, workers, 0.5, seed=3, device=CPU).of_update(updates - 1, 30)
    assert all(torch.equal(a.row.ids, b.row.ids) for a, b in zip(rows, again, strict=True))


def test_demonstrations_add_their_mean_loss_times_its_coefficient(tmp_path: Path) -> None:
    gradients = []
    for coef in (0.0, 0.7):
        ppo = make_ppo(tmp_path, demonstration_coef=coef, demonstration_tokens=400, minibatches=1)
        ppo.learner.apply = lambda scale: {"grad_norm": 0.0}  # type: ignore[method-assign]  # gather only
        _, traces, minibatches = experience(ppo)
        ppo.config = ppo.config.model_copy(update={"epochs": 1})
        ppo.update(traces, minibatches, 0)
        policy = ppo.networks.policy.model
        gradients.append(
            {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        )
    model = tiny_model()
    own = sample_loss(model.decoder, pack_row(demonstrations(model), CPU))
    (0.7 * own.total / own.count).backward()
    for name, parameter in model.decoder.model.named_parameters():
        assert parameter.grad is not None
        added = gradients[1][name] - gradients[0][name]
        assert torch.allclose(added, parameter.grad, atol=1e-6), name


def test_demonstrations_that_are_wanted_must_be_there_and_fit(tmp_path: Path) -> None:
    model, events = tiny_model(), EventLog(tmp_path / "e")
    samples = demonstrations(model)
    long = TokenSample(samples[0].ids * 20, samples[0].loss_mask * 20)
    config = PPOConfig(**SMALL | {"iterations": 1, "demonstration_coef": 0.5})
    mix = RewardMix([(Vowels(), 1.0)])
    with pytest.raises(DataError, match="none of 1 demonstrations fits a row of 128"):
        train_ppo(model, PROMPTS, None, config, tmp_path, events, reward=mix, demonstrations=[long])
    train_ppo(model, PROMPTS, None, config, tmp_path, events, reward=mix, demonstrations=[*samples, long])
    assert [e["count"] for e in events.read()[0] if e["kind"] == "samples_left_out"] == [1]


@pytest.mark.parametrize("workers", [Workers(), Workers(2)], ids=["alone", "two"])
def test_demonstrations_keep_what_the_reward_would_unlearn(workers: Workers, tmp_path: Path) -> None:
    losses = {}
    for coef in (0.0, 1.0):
        model = tiny_model()
        events = EventLog(tmp_path / f"{coef}.events")
        changes = {
            "iterations": 4,
            "demonstration_coef": coef,
            "demonstration_tokens": 64,
            "critic_warmup": 0,
        }
        train_ppo(
            model, PROMPTS, None, PPOConfig(**SMALL | changes), tmp_path / str(coef), events,
            reward=RewardMix([(Vowels(), 1.0)]), workers=workers, demonstrations=demonstrations(model),
        )  # fmt: skip
        with torch.no_grad():
            losses[coef] = sample_loss(model.decoder, pack_row(demonstrations(model), CPU)).total.item()
        first = next(e for e in events.read()[0] if e["kind"] == "step")["metrics"]
        assert ("demonstration_loss" in first) == (coef > 0) and first["first_ratio"] == 1
    assert losses[1.0] < 0.8 * losses[0.0]

"""PPO: the first step is neutral, nothing leaks, and a killed run resumes to the same bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from nestling.compute.workers import Workers
from nestling.errors import TrainingStopped
from nestling.generation.protocol import Completion
from nestling.model.hf_folder import save_model
from nestling.model.layout import PackedLayout
from nestling.model.scorer import Scorer
from nestling.rewards.terms import Attempt, RewardMix
from nestling.training.ppo import PPO, PPOConfig, train_ppo
from nestling.training.ppo.experience import joined, rows_of
from nestling.training.ppo.stage import Minibatch
from nestling.training.settings import LoRAConfig
from nestling.workspace.events import EventLog
from ppo_support import PROMPTS, SMALL, Vowels, experience, make_ppo
from test_training import CPU, assert_equal, run_in_pieces
from tiny import tiny_model

VARIANTS: list[dict[str, Any]] = [
    {}, {"samples": 3}, {"critic": "separate"}, {"lora": LoRAConfig(rank=4)}, {"value_coef": 0.0}, {"kl_target": 0.5},
    {"importance_cap": 2.0}, {"temperature": 0.7}, {"demonstration_coef": 0.3}, {"frozen_blocks": 1},
    {"frozen_blocks": 1, "lora": LoRAConfig(rank=4)}, {"frozen_blocks": 1, "critic": "separate"},
]  # fmt: skip


@pytest.mark.parametrize("workers", [Workers(), Workers(2)], ids=["alone", "two"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_before_the_first_update_the_ratio_is_one_and_the_kl_zero(
    changes: dict[str, Any], workers: Workers, tmp_path: Path
) -> None:
    ppo = make_ppo(tmp_path, workers=workers, **changes)
    ppo.warm_up_critic()
    attempts, traces, minibatches = experience(ppo)
    described = ppo.describe(attempts, traces)
    assert described["kl"] == 0
    assert described["rollout_mismatch_max"] < 1e-4
    metrics = ppo.update(traces, minibatches, 0)
    assert metrics["first_ratio"] == 1 and metrics["first_update_kl"] == 0
    assert metrics["updates"] == 4 and metrics["last_update_kl"] > 0


class _Again(PPO):
    """Computes the first update's forward pass again instead of keeping the one that scored."""

    def look_ahead(self, minibatches: Sequence[Minibatch], step: int) -> None:
        self._ahead = {}


@pytest.mark.parametrize("workers", [Workers(), Workers(2)], ids=["alone", "two"])
@pytest.mark.parametrize(
    "changes", [{}, {"critic": "separate"}, {"lora": LoRAConfig(rank=4)}, {"frozen_blocks": 1}], ids=str
)
def test_the_scoring_pass_that_is_kept_is_the_one_an_update_would_compute(
    changes: dict[str, Any], workers: Workers, tmp_path: Path
) -> None:
    weights = []
    for kind in (PPO, _Again):
        ppo = make_ppo(tmp_path, workers=workers, minibatches=1, row_tokens=512, **changes)
        ppo.__class__ = kind
        ppo.look_ahead(ppo.partition(ppo.roll_out(0)[0], 0), 0)
        assert len(ppo._ahead) == (workers.count if kind is PPO else 0)
        for step in range(2):
            ppo.step(step)
        assert not ppo._ahead  # no graph outlives its update
        weights.append([p.detach().clone() for p in ppo.networks.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class _FromTheStart(PPO):
    """Sends rows through the frozen blocks again in every pass."""

    def partition(self, attempts: Sequence[Attempt], step: int) -> list[Minibatch]:
        minibatches = super().partition(attempts, step)
        assert all(row.below is not None and row.below.blocks == 1 for part in minibatches for row, _ in part)
        return [[(replace(row, below=None), indices) for row, indices in part] for part in minibatches]


@pytest.mark.parametrize("changes", [{}, {"lora": LoRAConfig(rank=4)}, {"demonstration_coef": 0.3}], ids=str)
def test_frozen_blocks_computed_once_for_all_are_as_if_computed_every_time(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    weights = []
    for kind in (PPO, _FromTheStart):
        ppo = make_ppo(tmp_path, workers=Workers(2), frozen_blocks=1, **changes)
        ppo.__class__ = kind
        for step in range(2):
            ppo.step(step)
        weights.append(dict(ppo.networks.policy.named_parameters()))
    assert_equal(*weights)
    start = dict(make_ppo(tmp_path, frozen_blocks=1, **changes).networks.policy.named_parameters())
    moved = {name for name, p in weights[0].items() if not torch.equal(p, start[name])}
    assert moved and all("layers.1." in name or name == "model.norm.weight" for name in moved)


def test_the_reference_has_no_copy_of_frozen_blocks(tmp_path: Path) -> None:
    networks = make_ppo(tmp_path, frozen_blocks=1).networks
    own, theirs = networks.policy.state_dict(), networks.reference.state_dict()
    shared = {name for name in own if own[name].data_ptr() == theirs[name].data_ptr()}
    assert "model.embed_tokens.weight" in shared and "model.layers.0.mlp.up_proj.weight" in shared
    assert not any("layers.1." in name for name in shared)


def test_an_iteration_ends_before_the_update_that_would_go_too_far(tmp_path: Path) -> None:
    """The second update finds a KL above zero, and is not made."""
    free, held = (make_ppo(tmp_path, stop_kl=stop_kl, kl_coef=0.0) for stop_kl in (9.0, 1e-9))
    told = held.step(0)
    assert told["stopped_by_kl"] == 1 and told["updates"] == 1 and told["last_update_kl"] > 1e-9
    assert held.learner.optimizer.steps == 1 and free.step(0)["updates"] == 4
    assert held.learner.optimizer.clip_gradients(1.0) == {"model": 0}  # nothing is left for the next one


def test_a_value_head_that_is_not_fitted_first_starts_at_zero(tmp_path: Path) -> None:
    ppo = make_ppo(tmp_path, critic_warmup=0)
    ppo.warm_up_critic()
    assert not ppo.networks.value_head.weight.any()
    assert ppo.step(0)["updates"] == 4


def test_bf16_rollouts_stay_near_the_training_forward(tmp_path: Path) -> None:
    ppo = make_ppo(tmp_path, dtype=torch.bfloat16)
    attempts, traces, _ = experience(ppo)
    assert ppo.describe(attempts, traces)["rollout_mismatch"] < 0.04


def test_advantages_are_whitened_and_the_score_sits_on_the_last_token(tmp_path: Path) -> None:
    ppo = make_ppo(tmp_path, kl_coef=0.0)
    attempts, traces, _ = experience(ppo)
    advantages = joined(traces, "advantages")
    assert advantages.mean().abs() < 1e-5 and advantages.std(correction=0) == pytest.approx(1, abs=1e-3)
    for attempt, trace in zip(attempts, traces, strict=True):
        assert (
            trace.rewards[-1].item() == pytest.approx(Vowels()([attempt])[0]) and not trace.rewards[:-1].any()
        )
        assert trace.completion is attempt.completion
        assert len(trace.logprobs) == len(attempt.completion.token_ids)  # the end token is part of the loss


def test_answers_to_one_prompt_are_measured_against_each_other(tmp_path: Path) -> None:
    ppo = make_ppo(tmp_path, kl_coef=0.0, samples=3)
    attempts, traces, minibatches = experience(ppo)
    assert len(attempts) == 18
    score = {a.completion: Vowels()([a])[0] for a in attempts}
    for at in range(0, 18, 3):
        group = attempts[at : at + 3]
        assert len({a.completion.prompt_ids for a in group}) == 1 and len({a.completion for a in group}) > 1
        for attempt, trace in zip(group, traces[at : at + 3], strict=True):
            others = [score[a.completion] for a in group if a is not attempt]
            merit = score[attempt.completion] - sum(others) / 2
            assert trace.rewards[-1].item() == pytest.approx(merit, abs=1e-6)
    dealt = [i for minibatch in minibatches for _, indices in minibatch for i in indices]
    assert sorted(dealt) == list(range(18))
    for minibatch in minibatches:  # whole groups: what is compared is learned from in the same update
        members = sorted(i for _, indices in minibatch for i in indices)
        assert all(members[i] % 3 == i % 3 for i in range(len(members)))


def test_a_prompt_shared_by_its_answers_changes_nothing(tmp_path: Path) -> None:
    """Log-probabilities and gradients are those of one row an answer."""
    ppo = make_ppo(tmp_path, samples=3, minibatches=1)
    attempts, _ = ppo.roll_out(0)
    parameters = list(ppo.networks.policy.parameters())

    def run(groups: list[list[Completion]], row_tokens: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logprobs: dict[int, torch.Tensor] = {}
        for indices, row in rows_of(groups, row_tokens, 1, CPU):
            own = ppo.networks(row)[0]
            parts = iter(own.split(row.counts))
            for i in indices:
                logprobs[i] = torch.cat([next(parts) for _ in groups[i]])
        ordered = torch.cat([logprobs[i] for i in sorted(logprobs)])
        weights = torch.linspace(-1, 1, len(ordered))
        return ordered, list(torch.autograd.grad((ordered * weights).sum(), parameters, allow_unused=True))

    completions = [a.completion for a in attempts]
    shared = run([completions[at : at + 3] for at in range(0, 18, 3)], 512)
    alone = run([[c] for c in completions], 16)
    assert torch.allclose(shared[0], alone[0], atol=1e-5)
    for mine, theirs in zip(shared[1], alone[1], strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=1e-4)


def test_a_value_head_on_the_trunk_leaves_the_logits_alone_and_exports_hold_no_head(tmp_path: Path) -> None:
    model = tiny_model()
    ids = torch.arange(20, 40)
    before = model.decoder.logits(model.decoder(ids, PackedLayout.from_lengths([20])))
    ppo = make_ppo(tmp_path, model=model)
    ppo.warm_up_critic()
    assert ppo.networks.value_head.weight.abs().sum() > 0
    assert torch.equal(before, model.decoder.logits(model.decoder(ids, PackedLayout.from_lengths([20]))))
    save_model(tmp_path, model)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {n for n, _ in tiny_model().decoder.named_parameters()}


def value_gradients(ppo: PPO) -> float:
    """How much gradient the value loss alone sends into the trunk."""
    _, traces, minibatches = experience(ppo)
    row, indices = minibatches[0][0]
    _, _, values = ppo.networks(row)
    (values - joined([traces[i] for i in indices], "returns")).pow(2).sum().backward()
    assert ppo.networks.value_head.weight.grad.abs().sum() > 0
    return sum(p.grad.abs().sum().item() for p in ppo.networks.policy.parameters() if p.grad is not None)


def test_value_coefficient_zero_sends_nothing_into_the_trunk(tmp_path: Path) -> None:
    for coefficient, expected in ((0.0, False), (0.1, True)):
        ppo = make_ppo(tmp_path, value_coef=coefficient)
        torch.nn.init.normal_(ppo.networks.value_head.weight)
        assert (value_gradients(ppo) > 0) == expected


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "siblings": {"samples": 3},
    "separate critic": {"critic": "separate"},
    "adapters": {"lora": LoRAConfig(rank=4)},
    "two workers": {"samples": 3, "workers": Workers(2)},
    "frozen blocks": {"frozen_blocks": 1, "workers": Workers(2)},
    "demonstrations": {"demonstration_coef": 0.5, "demonstration_tokens": 32, "stop_kl": 1e-3, "epochs": 3},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_killed_and_resumed_is_bit_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    def make(folder: Path) -> PPO:
        return make_ppo(folder, dtype=torch.bfloat16, kl_target=0.5, **changes)

    whole = run_in_pieces(make, tmp_path / "whole", [])
    pieces = run_in_pieces(make, tmp_path / "pieces", [1, 2])
    assert_equal(whole.learner.optimizer.state(), pieces.learner.optimizer.state())
    assert whole.state() == pieces.state() and whole.kl_coef != whole.config.kl_coef
    for file in (tmp_path / "whole" / "transcripts").iterdir():
        assert file.read_bytes() == (tmp_path / "pieces" / "transcripts" / file.name).read_bytes()


def test_the_reference_stays_where_it_was(tmp_path: Path) -> None:
    ppo = make_ppo(tmp_path)
    start = tiny_model().decoder
    for step in range(2):
        ppo.step(step)
    for theirs, mine in zip(start.parameters(), ppo.networks.reference.parameters(), strict=True):
        assert torch.equal(theirs, mine)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(start.parameters(), ppo.networks.policy.parameters(), strict=True)
    )


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 3600.0])
def test_runaway_policies_are_stopped_before_the_next_update(
    checkpoint_seconds: float, tmp_path: Path
) -> None:
    """What was before the failed iteration is saved, however long ago the last checkpoint was; going on from it ends
    in the same way."""
    config = PPOConfig(**SMALL | {"learning_rate": 0.05, "iterations": 30, "max_kl": 2.0})
    events = EventLog(tmp_path / "e")
    for _ in range(2):
        with pytest.raises(TrainingStopped, match=r"collapsed: the KL.*above max_kl"):
            train_ppo(
                tiny_model(), PROMPTS, None, config, tmp_path, events, reward=RewardMix([(Vowels(), 10.0)]),
                checkpoint_seconds=checkpoint_seconds,
            )  # fmt: skip
    steps = [e["step"] for e in events.read()[0] if e["kind"] == "step"]
    assert [f.name for f in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{steps[-1]:06d}"]
    assert steps == list(range(1, len(steps) + 1)), "the second try began where the first one ended"
    assert [e["kind"] for e in events.read()[0]].count("stage_failed") == 2


class Breaks:
    """A reward that is no number from its third call on."""

    name, calls = "breaks", 0

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        self.calls += 1
        return [math.nan if self.calls > 2 else float(i % 3) for i in range(len(attempts))]


def test_what_is_no_number_stops_ppo_with_a_checkpoint_of_finite_weights(tmp_path: Path) -> None:
    model, events = tiny_model(), EventLog(tmp_path / "e")
    config = PPOConfig(**SMALL | {"iterations": 9, "critic_warmup": 0})
    with pytest.raises(TrainingStopped, match="nan: training has diverged"):
        train_ppo(model, PROMPTS, None, config, tmp_path, events, reward=RewardMix([(Breaks(), 1.0)]))
    assert [f.name for f in tmp_path.glob("checkpoint-*")] == ["checkpoint-000002"]
    assert all(bool(p.isfinite().all()) for p in model.decoder.parameters())


def test_a_learned_score_rewards_what_the_scorer_likes(tmp_path: Path) -> None:
    model = tiny_model()
    scorer = Scorer(tiny_model(seed=3).decoder, model.tokenizer)
    torch.nn.init.normal_(scorer.head.weight)
    events = EventLog(tmp_path / "e")
    changes = {"iterations": 1, "learned_weight": 1.0, "check_weight": 0.0, "unfinished_penalty": 0.0}
    train_ppo(model, PROMPTS, scorer, PPOConfig(**SMALL | changes), tmp_path, events)
    [step] = [e for e in events.read()[0] if e["kind"] == "step"]
    assert step["metrics"]["reward/learned"] != 0
    total = step["metrics"]["reward/learned"] - 0.5 * step["metrics"]["reward/looping"]
    assert step["metrics"]["reward/total"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_critic_of_its_own_begins_as_the_reward_model(tmp_path: Path, samples: int) -> None:
    """Its values are the scores of what was said so far; beside siblings, which are subtracted, they begin at zero."""
    model = tiny_model(seed=9)
    scorer = Scorer(model.decoder, model.tokenizer)
    torch.nn.init.normal_(scorer.head.weight, generator=torch.Generator().manual_seed(3))
    scorer.mean, scorer.std = 0.7, 2.5
    ppo = make_ppo(tmp_path, scorer=scorer, critic="separate", samples=samples, learned_weight=0.5)
    if samples == 1:
        ppo.warm_up_critic()  # changes nothing: the score knows more than a few answers would tell
    attempts, _ = ppo.roll_out(0)
    for minibatch in ppo.partition(attempts, 0):
        for row, _ in minibatch:
            values = ppo.networks(row)[2]
            raw = scorer.head(scorer.decoder(row.ids, row.layout)[row.predictors])
            expected = 0.5 * scorer.normalise(raw) if samples == 1 else torch.zeros_like(raw)
            assert torch.allclose(values, expected, atol=1e-5)
    trained = {name for group in ppo.networks.groups() for name in group.parameters}
    assert any(name.startswith("critic.") for name in trained)
    before = scorer.head.weight.clone()
    ppo.step(1)
    assert torch.equal(scorer.head.weight, before) and not torch.equal(
        ppo.networks.value_head.weight, before * 0.5 / 2.5
    )

"""The maths against values worked by hand (tests/data/known_answers.json) and against plain Python."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from nestling.objectives import advantages, policy, preference, ranking

KNOWN = json.loads((Path(__file__).parent / "data" / "known_answers.json").read_text())


def close(actual: torch.Tensor, expected: object) -> bool:
    return torch.allclose(actual.double(), torch.tensor(expected).double(), atol=1e-5)


def test_gae_matches_the_hand_worked_answer() -> None:
    k = KNOWN["gae"]
    ones = torch.ones(1, 4, dtype=torch.bool)
    got, returns = advantages.gae(
        tensor([k["rewards"]]).float(), tensor([k["values"]]), ones, k["gamma"], k["lambda"]
    )
    assert close(got, [k["advantages"]]) and close(returns, [k["returns"]])
    assert close(advantages.whiten(got, ones), [k["whitened_population_variance"]])


def test_gae_with_a_finished_and_a_truncated_answer_in_one_batch() -> None:
    """Worked by hand: gamma 1, lambda 0.5; the second answer has two tokens and a bootstrap value of 2."""
    rewards = tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 99.0]])
    values = tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 99.0]])
    mask = tensor([[True, True, True], [True, True, False]])
    got, returns = advantages.gae(rewards, values, mask, 1.0, 0.5, bootstrap=tensor([0.0, 2.0]))
    # First: deltas 0, 0, 0.5 -> 0.125, 0.25, 0.5. Second: deltas 0, 1 + 2 - 1 = 2 -> 1, 2.
    assert close(got, [[0.125, 0.25, 0.5], [1.0, 2.0, 0.0]])
    assert close(returns, [[0.625, 0.75, 1.0], [2.0, 3.0, 0.0]])


def plain_gae(
    rewards: list[float], values: list[float], gamma: float, lam: float, after: float
) -> list[float]:
    out, running = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(values) else after
        running = rewards[t] + gamma * following - values[t] + gamma * lam * running
        out[t] = running
    return out


numbers = st.floats(-3, 3)


@given(
    st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4), numbers
)
@settings(max_examples=50, deadline=None)
def test_padding_changes_nothing_in_gae(rows: list[list[tuple[float, float]]], after: float) -> None:
    longest = max(map(len, rows)) + 2
    rewards, values = torch.full((len(rows), longest), 7.0), torch.full((len(rows), longest), -5.0)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        rewards[i, : len(row)] = tensor([r for r, _ in row])
        values[i, : len(row)] = tensor([v for _, v in row])
        mask[i, : len(row)] = True
    got, _ = advantages.gae(rewards, values, mask, 0.9, 0.8, torch.full((len(rows),), after))
    for i, row in enumerate(rows):
        expected = plain_gae([r for r, _ in row], [v for _, v in row], 0.9, 0.8, after)
        assert torch.allclose(got[i, : len(row)], tensor(expected), atol=1e-4)
        assert not got[i, len(row) :].any()


def test_group_advantages() -> None:
    k = KNOWN["group_advantages"]
    rewards = tensor([k["rewards"]]).float()
    assert close(advantages.leave_one_out(rewards), [k["rloo"]])
    assert close(advantages.group_relative(rewards), [k["grpo_unbiased_std"]])
    assert close(advantages.group_relative(rewards, divide_by_std=False), [k["dr_grpo"]])


def test_ppo_clip() -> None:
    k = KNOWN["ppo_clip"]
    log_ratio, adv = tensor(k["ratio"]).log(), tensor(k["advantage"]).float()
    loss, clipped = policy.ppo_policy_loss(log_ratio, torch.zeros(5), adv, k["epsilon"], dual_clip=None)
    assert close(loss, k["loss"])
    assert clipped.tolist() == [True, False, False, True, False]
    dual, _ = policy.ppo_policy_loss(log_ratio, torch.zeros(5), adv, k["epsilon"], dual_clip=3.0)
    assert close(dual[-1], k["dual_clip_3_last"]) and close(dual[:-1], k["loss"][:-1])


def test_ppo_gradient_is_the_plain_policy_gradient_at_ratio_one() -> None:
    logprobs = tensor([-1.0, -2.0, -0.5], requires_grad=True)
    adv = tensor([1.0, -2.0, 0.5])
    policy.ppo_policy_loss(logprobs, logprobs.detach(), adv)[0].sum().backward()
    assert close(logprobs.grad, (-adv).tolist())


def test_value_loss_is_pessimistic_beyond_the_clip() -> None:
    loss, clipped = policy.value_loss(tensor([1.0, 0.1]), tensor([0.0, 0.0]), tensor([1.0, 1.0]), clip=0.2)
    assert close(loss, [0.5 * 0.64, 0.5 * 0.81]) and clipped.tolist() == [True, False]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimators(kind: str) -> None:
    k = KNOWN["kl_estimators"]
    ratio = tensor(k["log_ratio_policy_over_reference"])
    assert close(policy.kl_estimate(ratio, torch.zeros(3), kind), k[kind])


def test_k1_and_k3_estimate_the_true_kl() -> None:
    p, q = tensor([0.5, 0.3, 0.2]).log(), tensor([0.2, 0.5, 0.3]).log()
    true = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        assert torch.allclose((p.exp() * policy.kl_estimate(p, q, kind)).sum(), true, atol=1e-6)


def test_explained_variance() -> None:
    returns = tensor([1.0, 2.0, 3.0])
    assert close(policy.explained_variance(returns, returns), 1.0)
    assert close(policy.explained_variance(torch.zeros(3), returns), 0.0)
    assert policy.explained_variance(-returns, returns) < 0


def test_ranking_losses() -> None:
    k = KNOWN["reward_model"]
    scores, ranks = tensor(k["scores_in_rank_order"]).float(), tensor([1, 2, 3])
    assert close(ranking.plackett_luce_nll(scores, ranks), k["plackett_luce_nll"])
    assert close(ranking.all_pairs_nll(scores, ranks), k["mean_of_all_pairs_bradley_terry_nll"])


def test_order_of_candidates_changes_no_ranking_loss() -> None:
    scores, ranks = tensor([0.3, -1.0, 2.0, 0.1]), tensor([2, 3, 1, 2])
    for loss in (ranking.plackett_luce_nll, ranking.all_pairs_nll):
        values = {round(float(loss(scores[list(p)], ranks[list(p)])), 5) for p in permutations(range(4))}
        assert len(values) == 1


def test_ties_are_neither_right_nor_wrong() -> None:
    scores = tensor([1.0, 5.0], requires_grad=True)
    tied = tensor([1, 1])
    assert ranking.all_pairs_nll(scores, tied).item() == 0 == ranking.plackett_luce_nll(scores, tied).item()
    assert ranking.pair_accuracy(scores, tied) == (0, 0)
    assert ranking.pair_accuracy(tensor([2.0, 1.0, 1.0]), tensor([1, 2, 3])) == (2, 3)


def test_plackett_luce_is_a_distribution_over_orders() -> None:
    scores = tensor([0.7, -0.2, 1.1])
    total = sum(
        math.exp(-float(ranking.plackett_luce_nll(scores, tensor(p) + 1))) for p in permutations(range(3))
    )
    assert total == pytest.approx(1.0, abs=1e-5)


def test_preference_losses() -> None:
    k = KNOWN["dpo"]
    args = [
        tensor([float(k[n])])
        for n in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    ]
    assert close(preference.dpo_loss(*args, k["beta"]), [k["sigmoid"]])
    assert close(preference.dpo_loss(*args, k["beta"], label_smoothing=0.1), [k["conservative_eps_0.1"]])
    assert close(preference.dpo_loss(*args, k["beta"], kind="ipo"), [k["ipo"]])
    assert close(preference.dpo_loss(*args, k["beta"], kind="hinge"), [k["hinge"]])


def test_kto_by_hand() -> None:
    """Two answers, one good, that gained 2 and lost 1 nats, where answers in general gained half a nat."""
    policy, reference = tensor([-8.0, -11.0]), tensor([-10.0, -10.0])
    good, drift = tensor([True, False]), tensor(0.5)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    loss = preference.kto_loss(policy, reference, good, drift, beta=0.2, good_weight=1.5, bad_weight=0.5)
    assert close(loss, [1.5 * (1 - sigmoid(0.2 * 1.5)), 0.5 * (1 - sigmoid(0.2 * 1.5))])


def test_kto_compares_with_a_drift_that_is_never_negative_and_gets_no_gradient() -> None:
    policy, reference = tensor([-1.0], requires_grad=True), tensor([-1.0])
    drift = tensor(-3.0, requires_grad=True)
    loss = preference.kto_loss(policy, reference, tensor([True]), drift)
    assert loss.item() == 0.5  # as if nothing had drifted
    loss.sum().backward()
    assert drift.grad is None and policy.grad is not None and policy.grad.item() < 0

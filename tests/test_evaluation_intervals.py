"""Intervals: known cases, coverage under template effects, and what they must not claim."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.evaluation.intervals import resample_difference, resample_rate, resample_ratio


def names(templates: int, each: int) -> list[str]:
    return [f"t{k}" for k in range(templates) for _ in range(each)]


def clopper_pearson(passed: int, n: int) -> tuple[float, float]:
    """By bisection on the exact binomial tails."""

    def tail(p: float, ks: range) -> float:
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in ks)

    def solve(wanted: float, ks: range, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if (tail(middle, ks) < wanted) == rising else (low, middle)
        return low

    lower = solve(0.025, range(passed, n + 1), rising=True) if passed else 0.0
    upper = solve(0.025, range(passed + 1), rising=False) if passed < n else 1.0
    return lower, upper


class TestRate:
    @pytest.mark.parametrize("passed", [0, 1, 7, 29, 30])
    def test_one_prompt_a_template_is_clopper_pearson(self, passed: int) -> None:
        outcomes = [k < passed for k in range(30)]
        found = resample_rate(outcomes, names(30, 1)).interval()
        assert found == pytest.approx(clopper_pearson(passed, 30), abs=0.012)

    def test_all_right_claims_no_more_than_its_templates_show(self) -> None:
        low, high = resample_rate([True] * 300, names(30, 10)).interval()
        assert high == pytest.approx(1)
        assert low == pytest.approx(clopper_pearson(30, 30)[0], abs=0.01)
        low, high = resample_rate([False] * 300, names(30, 10)).interval()
        assert low == 0 and high == pytest.approx(clopper_pearson(0, 30)[1], abs=0.01)

    def test_prompts_that_fail_together_widen_the_interval(self) -> None:
        together = [k < 240 for k in range(300)]
        apart = [k % 10 < 8 for k in range(300)]
        wide, narrow = (np.ptp(resample_rate(x, names(30, 10)).interval()) for x in (together, apart))
        assert wide > 2 * narrow

    def test_balanced_accuracy_weighs_strata_equally(self) -> None:
        outcomes = [True] * 90 + [True] * 5 + [False] * 5
        strata = ["good"] * 90 + ["bad"] * 10
        assert resample_rate(outcomes, names(20, 5), strata).estimate == pytest.approx(0.75)

    def test_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError):
            resample_rate([], [])

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=12))
    def test_stays_in_bounds_and_repeats(self, templates: list[list[bool]]) -> None:
        outcomes = [o for template in templates for o in template]
        clusters = [f"t{k}" for k, template in enumerate(templates) for _ in template]
        first, second = resample_rate(outcomes, clusters), resample_rate(outcomes, clusters)
        low, high = first.interval()
        assert first.interval() == second.interval()
        assert -1e-9 <= low <= high <= 1 + 1e-9
        assert first.estimate == pytest.approx(np.mean(outcomes))


class TestDifference:
    def test_nothing_changed_leaves_the_rule_of_three(self) -> None:
        found = resample_difference([0] * 150, names(15, 10))
        assert found.estimate == 0
        assert found.lower(0.95) == pytest.approx(-3 / 150, rel=0.1)
        assert found.upper(0.95) == pytest.approx(3 / 150, rel=0.1)

    def test_pooled_strata_share_one_imagined_template(self) -> None:
        clusters = [f"{b}{t}" for b in "abc" for t in names(10, 5)]
        found = resample_difference([0] * 150, clusters, [b for b in "abc" for _ in range(50)])
        assert found.lower(0.95) == pytest.approx(-3 / 150, rel=0.15)

    def test_swapping_the_versions_mirrors_the_interval(self) -> None:
        gains = np.array([1, 0, 0, -1, 0, 1, 1, 0, 0, 0] * 12)
        ours = resample_difference(gains, names(12, 10)).interval()
        theirs = resample_difference(-gains, names(12, 10)).interval()
        assert ours == pytest.approx((-theirs[1], -theirs[0]))


def test_ratio_of_equal_losses_is_certain() -> None:
    found = resample_ratio([3.0, 6.0, 1.5], [2.0, 4.0, 1.0])
    assert found.interval() == pytest.approx((1.5, 1.5))


def drawn(random: np.random.Generator, mean: float, alike: float, templates: int) -> np.ndarray:
    """Each template's own probability: a beta distribution with intraclass correlation ``alike``."""
    if not alike:
        return np.full((templates, 1), mean)
    return random.beta(mean * (1 / alike - 1), (1 - mean) * (1 / alike - 1), (templates, 1))


@pytest.mark.parametrize(("mean", "alike"), [(0.9, 0.0), (0.9, 0.1), (0.98, 0.05), (0.5, 0.2)])
def test_coverage_of_rates_with_template_effects(mean: float, alike: float) -> None:
    """Nominal 95 % with 30 templates of 10 prompts."""
    random, hits, rounds = np.random.default_rng(3), 0, 100
    for _ in range(rounds):
        outcomes = random.random((30, 10)) < drawn(random, mean, alike, 30)
        low, high = resample_rate(outcomes.ravel(), names(30, 10)).interval()
        hits += low <= mean <= high
    assert hits >= 0.93 * rounds


@pytest.mark.parametrize(("templates", "alike"), [(13, 0.0), (13, 0.05), (30, 0.1)])
def test_coverage_of_differences_with_template_effects(templates: int, alike: float) -> None:
    """Nominal 95 %; templates lose 5 % on average and win 2 %. The gate split has some 13 templates."""
    random, hits, rounds = np.random.default_rng(4), 0, 100
    for _ in range(rounds):
        loses, wins = drawn(random, 0.05, alike, templates), drawn(random, 0.02, alike, templates)
        draw = random.random((templates, 11))
        gains = np.where(draw < loses, -1, np.where(draw > 1 - wins, 1, 0))
        low, high = resample_difference(gains.ravel(), names(templates, 11)).interval()
        hits += low <= -0.03 <= high
    assert hits >= 0.93 * rounds

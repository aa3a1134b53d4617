"""What a reward model is told to be worth: the calibration by hand, the whole report on rankings of a known scorer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.model.scorer import Scorer
from nestling.workflow.reward_report import calibration, calibration_error, reward_report
from nestling.workflow.stages import describe_reward_model
from tiny import tiny_model


def test_calibration_by_hand() -> None:
    """Sure by 0.55, 0.58 (one right) and by 0.95 twice (both right): (2 * |0.565 - 0.5| + 2 * 0.05) / 4."""
    odds = lambda p: math.log(p / (1 - p))
    bins = calibration([odds(0.55), -odds(0.58), odds(0.95), odds(0.95)])
    assert [(b["from"], b["pairs"], b["observed"]) for b in bins] == [(0.5, 2, 0.5), (0.9, 2, 1.0)]
    assert [b["predicted"] for b in bins] == pytest.approx([0.565, 0.95])
    assert calibration_error(bins) == pytest.approx((2 * 0.065 + 2 * 0.05) / 4)
    assert calibration([]) == [] and calibration_error([]) is None


@given(st.lists(st.floats(-800, 800), min_size=1, max_size=40))
def test_every_pair_is_in_one_bin(margins: list[float]) -> None:
    bins = calibration(margins)
    assert sum(b["pairs"] for b in bins) == len(margins)
    assert all(b["from"] - 1e-9 <= b["predicted"] <= b["from"] + 0.1 + 1e-9 for b in bins)
    error = calibration_error(bins)
    assert error is not None and 0 <= error <= 1


def test_kinds_of_pairs_are_told_apart_in_every_category() -> None:
    model = tiny_model()
    scorer = Scorer(model.decoder, model.tokenizer)
    torch.nn.init.normal_(scorer.head.weight)
    told = reward_report(
        scorer, [ranking("format", "sft", "sft", "written"), ranking("refusal", "sft", "written")]
    )
    assert told["rankings"] == 2 and told["by_category"].keys() == {"format", "refusal"}
    pairs = lambda part: (part["all"]["pairs"], part["on_policy"]["pairs"], part["with_written"]["pairs"])
    assert pairs(told) == (4, 1, 3)
    assert pairs(told["by_category"]["format"]) == (3, 1, 2) and pairs(told["by_category"]["refusal"]) == (
        1,
        0,
        1,
    )
    assert told["by_category"]["refusal"]["on_policy"] == {
        "pairs": 0,
        "accuracy": None,
        "calibration_error": None,
    }
    right = round(told["all"]["accuracy"] * told["all"]["pairs"])
    assert len(told["most_confidently_wrong"]) == told["all"]["pairs"] - right
    assert sum(b["pairs"] for b in told["calibration"]["with_written"]) == 3


def test_what_people_compared_is_a_kind_of_its_own() -> None:
    model = tiny_model()
    rows = [ranking("format", "sft", "sft", "written"), ranking("people", "people", "people", "people")]
    told = reward_report(Scorer(model.decoder, model.tokenizer), rows)
    assert [told[kind]["pairs"] for kind in ("all", "on_policy", "with_written", "people")] == [6, 1, 2, 3]
    assert "with written ones" in describe_reward_model(told) and "of people's" in describe_reward_model(told)
    assert "of people's" not in describe_reward_model(
        reward_report(Scorer(model.decoder, model.tokenizer), rows[:1])
    )


def ranking(category: str, *sources: str) -> dict[str, Any]:
    return {
        "category": category,
        "prompt": [{"role": "user", "content": f"say {category}"}],
        "completions": [f"answer {'more ' * n}" for n, _ in enumerate(sources)],
        "finished": [True] * len(sources),
        "ranks": list(range(1, 1 + len(sources))),
        "sources": list(sources),
    }

"""Work side by side: the same results as one after another, whoever is faster, and no waiting for who failed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.compute.device import Hardware, detect
from nestling.compute.workers import Workers
from nestling.data.packing import deal
from nestling.errors import ConfigError, RequestError
from nestling.generation.engine import Engine
from nestling.generation.protocol import Request, Sampling
from nestling.generation.side_by_side import SideBySide
from nestling.model.decoder import Decoder
from nestling.model.rows import Row, pack_row
from nestling.model.scorer import Scorer
from nestling.training.learner import Learner, Loss
from nestling.training.optimizer import ParameterGroup, trainable
from nestling.training.reward_model import RewardModelConfig, train_reward_model
from nestling.training.settings import LoRAConfig
from nestling.training.sft import SFT, SFTConfig, sample_loss, train_sft
from nestling.workspace.events import EventLog
from test_text_support import user
from test_training import CPU, assert_equal, rankings, samples_of, weights
from tiny import tiny_model

TWO = Workers(2)


def test_results_come_in_order_and_each_worker_has_its_own_items() -> None:
    def work(worker: int, item: int) -> tuple[int, int, int]:
        time.sleep(random.random() / 500)
        return worker, item, torch.get_num_threads()

    done = Workers(3).map(work, range(20))
    assert done == [(i % 3, i, 1) for i in range(20)]
    assert Workers().map(lambda worker, item: (worker, item), [5, 6]) == [(0, 5), (0, 6)]


def test_gradients_are_on_or_off_as_for_the_caller() -> None:
    graded = lambda _, __: torch.is_grad_enabled()
    with torch.no_grad():
        assert TWO.map(graded, range(4)) == [False] * 4
    assert TWO.map(graded, range(4)) == [True] * 4


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_raised_and_stops_the_others(failing: int) -> None:
    seen = []

    def work(worker: int, item: int) -> None:
        if worker == failing:
            raise ValueError("this one")
        seen.append(item)
        while not TWO.stopping.is_set():
            time.sleep(0.001)

    with pytest.raises(ValueError, match="this one"):
        TWO.map(work, range(100))
    assert len(seen) <= 1
    assert TWO.map(lambda _, item: item, range(4)) == [0, 1, 2, 3]  # and they work again


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 6))
def test_dealing_loses_nothing_and_leaves_no_bin_empty(lengths: list[int], parts: int) -> None:
    bins = deal(lengths, parts)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(lengths)))
    assert all(bins) and len(bins) == min(parts, len(lengths))
    sums = [sum(max(1, lengths[i]) for i in bin_) for bin_ in bins]
    assert not sums or max(sums) - min(sums) <= max(1, *lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_of_two_workers_are_those_of_one_to_the_last_bit(dtype: torch.dtype) -> None:
    """Also when they are slow in turns, and take different numbers of rows."""

    def slow(decoder: Decoder, row: Row) -> Loss:
        time.sleep(random.random() / 100)
        return sample_loss(decoder, row)

    results = []
    for workers in (Workers(), TWO, Workers(3)):
        model = tiny_model(dtype=dtype)
        group = ParameterGroup(trainable(model.decoder), 1e-3)
        learner = Learner(model.decoder, [group], workers=workers)
        rows = [pack_row(samples_of(model)[i : i + 4], CPU) for i in range(0, 20, 4)]
        for step in range(3):
            chosen = rows[step:]
            metrics = learner.update(chosen, sum(len(r.targets) for r in chosen), slow, 1.0)
        results.append((metrics, learner.optimizer.state(), weights(model)))
    for metrics, state, final in results[1:]:
        assert metrics == results[0][0]
        assert_equal(state, results[0][1])
        assert_equal(final, results[0][2])


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_row_that_fails_stops_the_update_and_leaves_the_weights(failing: int) -> None:
    model = tiny_model()
    learner = Learner(model.decoder, [ParameterGroup(trainable(model.decoder), 1e-3)], workers=TWO)
    before, rows = weights(model), [pack_row([s], CPU) for s in samples_of(model)[:5]]

    def loss(decoder: Decoder, row: Row) -> Loss:
        if row is rows[failing]:
            raise MemoryError("too large")
        return sample_loss(decoder, row)

    with pytest.raises(MemoryError):
        learner.update(rows, 10, loss, 1.0)
    assert_equal(before, weights(model))
    count = sum(len(row.targets) for row in rows)
    again = learner.update(rows, count, sample_loss, 1.0)  # nothing of the failed one is left
    other = tiny_model()
    alone = Learner(other.decoder, [ParameterGroup(trainable(other.decoder), 1e-3)])
    assert again == alone.update(rows, count, sample_loss, 1.0)
    assert_equal(weights(model), weights(other))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": LoRAConfig(rank=4)},
        {"interpolation": 0.5},
        {"lora": LoRAConfig(rank=4), "interpolation": 0.5},
    ],
    ids=["full", "adapters", "half way", "half of the adapters"],
)
def test_fine_tuning_by_two_ends_where_fine_tuning_by_one_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """A step of one row is dealt among both: other sums, so equal up to rounding only."""
    losses = []
    for workers in (None, TWO):
        model, folder = tiny_model(), tmp_path / str(workers)
        samples = samples_of(model)
        config = SFTConfig(learning_rate=2e-3, epochs=6, row_tokens=256, batch_tokens=256, **settings)
        report = train_sft(
            model, samples[:16], samples[16:], config, folder, EventLog(folder / "e"), workers=workers
        )
        check = SFT(model.decoder, samples[:16], samples[16:], SFTConfig(), tmp_path)
        assert report.loss == pytest.approx(check.validate()["validation_loss"], abs=1e-5)
        losses.append((report.best_loss, report.loss))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3) and losses[0][0] < report.first_loss - 0.1


def test_a_reward_model_is_trained_by_two(tmp_path: Path) -> None:
    model = tiny_model()
    scorer, data = Scorer(model.decoder, model.tokenizer), rankings(model)
    config = RewardModelConfig(
        learning_rate=2e-3, head_learning_rate=1e-2, epochs=6, row_tokens=400, batch_tokens=800
    )
    log = EventLog(tmp_path / "e")
    report = train_reward_model(scorer, data[:18], data[18:], config, tmp_path / "rm", log, workers=TWO)
    assert report.best_loss < report.first_loss and scorer.head.weight.any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_engines_side_by_side_answer_as_one_does(temperature: float) -> None:
    model = tiny_model()
    texts = [f"say {w}" for w in ["red", "blue", "blue", "tree", "bird", "bird", "bird", "stone"]]
    requests = [
        Request([user(text)], Sampling(temperature=temperature, max_tokens=12, seed=seed))
        for seed, text in enumerate(texts)
    ]
    alone, together = Engine(model), SideBySide(model, TWO, max_batch=4)
    assert [c.token_ids for c in together.generate(requests)] == [
        c.token_ids for c in alone.generate(requests)
    ]
    assert together.generate([]) == [] and len(together.generate(requests[:1])) == 1


def test_a_request_that_does_not_fit_leaves_nothing_running() -> None:
    together = SideBySide(tiny_model(), TWO, max_batch=4)
    short = Request([user("hi")], Sampling(temperature=0, max_tokens=4))
    long = Request([user("hi")], Sampling(temperature=0, max_tokens=10**6))
    with pytest.raises(RequestError, match="exceed the context"):
        together.generate([short, short, Request([user("no")], long.sampling)])
    assert len(together.generate([short])) == 1
    assert all(engine.active == 0 for engine in together._engines)


def test_hardware_names_its_workers() -> None:
    assert detect("float32", threads=2).workers == (2 if detect("float32", 2).device == "cpu" else 1)
    assert detect("float32", threads=3).workers == 1
    assert Hardware("cpu", "float32", 4, 2).side_by_side() is Hardware("cpu", "bfloat16", 4, 2).side_by_side()
    with pytest.raises(ConfigError, match="3 workers cannot share 2 threads"):
        detect("float32", threads=2, workers=3)
    torch.set_num_threads(1)


def test_what_computes_spins_and_what_it_starts_to_serve_does_not() -> None:
    ask = "from nestling.compute.process import settle_libraries, spins; settle_libraries({}); print(spins())"
    serve = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ask.format(False)!r}])"
    program = f"{ask.format(True)}; {serve}"

    def told(**environment: str) -> list[str]:
        clean = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        done = subprocess.run(
            [sys.executable, "-uc", program],
            env=clean | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    if sys.platform.startswith("linux"):
        assert told() == ["True", "False"]
    assert told(GOMP_SPINCOUNT="0") == ["False", "False"]  # a user's own setting stays

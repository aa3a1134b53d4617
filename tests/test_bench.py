"""The benchmark's own arithmetic, and real contenders on a small model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nestling.bench import quick
from nestling.bench.duel import Contender, Duel, Outcome, Player, fight, quartiles
from nestling.bench.growth import line, power
from nestling.bench.learning import USUAL, difference, variants, write_learning
from nestling.bench.race import OURS, Judge, Runner, Start, run, write_race
from nestling.bench.report import Report
from nestling.bench.roofline import Peaks, Shape, decode_seconds, measure_peaks, step_flops
from nestling.bench.setting import Material, lay_down
from nestling.cli.bench import _named
from nestling.compute.device import Hardware
from nestling.errors import BenchError, ConfigError
from nestling.model.layout import PackedLayout
from nestling.workspace import Version
from nestling.workspace.versions import Card
from tiny import tiny_model


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder, model = tmp_path_factory.mktemp("bench"), tiny_model()
    lay_down(folder, lambda: model)
    return Material(folder, model.config, model.tokenizer, Hardware("cpu", "float32", 2, 2))


def ours(material: Material, name: str, **more: Any) -> Contender:
    return Contender(name, "ours", material.write(name, more))


PEER = """
import sys
sys.path.insert(0, {peers!r})
from turns import Turns
turns = Turns()
print("noise on standard output is not an answer")
turns.take(lambda: sum(range(turns.setting["count"])) and None)
"""


@pytest.mark.slow
def test_a_duel_of_two_processes_gives_ratios_and_peaks(material: Material, tmp_path: Path) -> None:
    import nestling.bench.peers as peers

    prompts = material.windows(4, 16)
    mine = ours(material, "decode", kind="decode", prompts=prompts, answer_tokens=8)
    program = tmp_path / "peer.py"
    program.write_text(PEER.format(peers=str(Path(peers.__path__[0]))))
    theirs = Contender("counting", str(program), material.write("counting", {"count": 3_000_000}))
    said: list[str] = []
    outcome = fight(Duel("decoding / counting", mine, theirs, least=1), 3, tmp_path / "logs", said.append)
    assert len(outcome.ours) == len(outcome.peer) == len(said) == 3
    assert all(turn["seconds"] >= turn["decoding"] > 0 for turn in outcome.ours)
    assert outcome.spread[0] <= outcome.ratio <= outcome.spread[2]
    assert outcome.our_peak > outcome.peer_peak > 1 << 20  # bytes; only one of them has loaded torch
    report = Report(
        material.hardware,
        Peaks(1e12, 1e10),
        "the command",
        [outcome],
        {"the other": "it crashed"},
        [("step", 0.5)],
    )
    text = report.write(tmp_path).read_text()
    assert f"**{outcome.ratio:.2f}**" in text and "1x (0x)" in text and "50%" in text
    assert "| the other | not measured: it crashed |" in text
    assert (tmp_path / "pictures" / "speed.svg").read_text().startswith("<svg")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shared", "separate", "lora", "sft", "reward_model"])
def test_every_step_of_ours_takes_turns(material: Material, tmp_path: Path, kind: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "shared": {"kind": "ppo", "critic": "shared"},
        "separate": {"kind": "ppo", "critic": "separate"},
        "lora": {"kind": "ppo", "critic": "shared", "lora": 4},
        "sft": {"kind": "sft", "conversations": material.conversations()[:2]},
        "reward_model": {"kind": "reward_model", "rankings": material.rankings()[:2]},
    }
    more = {"prompts": material.windows(4, 8), "answer_tokens": 6} | settings[kind]
    with Player(ours(material, kind, **more), tmp_path / "log") as player:
        turns = [player.turn() for _ in range(7)]  # more than PPO lets pass without an end token
    assert all(turn["seconds"] > 0 for turn in turns)
    if kind in ("shared", "separate", "lora"):
        assert all(0 < turn["generating"] < turn["seconds"] for turn in turns)


def test_a_contender_that_does_not_start_is_named_with_its_last_words(
    material: Material, tmp_path: Path
) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('no such package')")
    with (
        pytest.raises(BenchError, match="broken stopped: no such package"),
        Player(
            Contender("broken", str(program), material.write("broken", {}), Path(sys.executable)),
            tmp_path / "log",
        ),
    ):
        pass


def test_operations_are_those_that_torch_counts() -> None:
    model = tiny_model()
    shape, tokens = Shape.of(model.config), 24
    ids, layout = torch.arange(tokens), PackedLayout.from_lengths([tokens])
    with FlopCounterMode(display=False) as counted:
        hidden = model.decoder(ids, layout)
        model.decoder.logits(hidden)
    # The counter sees attention whole; a causal pass needs half of it.
    assert counted.get_total_flops() == shape.forward(tokens, tokens, tokens)
    assert step_flops(shape, [tokens], 5) == 3 * shape.forward(tokens, 5, tokens / 2)


def test_decoding_few_streams_is_bound_by_memory_and_many_by_products() -> None:
    shape, peaks = Shape(10**8, 10**7, 0), Peaks(1e12, 1e10)
    one, many = (decode_seconds(shape, peaks, rows, 1, 0, 2) for rows in (1, 1000))
    assert one == pytest.approx(2 * 1.1e8 / 1e10)
    assert many == pytest.approx(1000 * 2 * 1.1e8 / 1e12)


def test_peaks_are_positive_and_finite() -> None:
    peaks = measure_peaks(Hardware("cpu", "float32", 2, 2), turns=2, size=128)
    assert 1e8 < peaks.flops < 1e15 and 1e8 < peaks.bandwidth < 1e13


@given(st.floats(0.2, 3), st.floats(1e-3, 10))
def test_a_power_law_is_found_again(exponent: float, constant: float) -> None:
    values = [2.0, 4.0, 16.0]
    assert power(values, [constant * x**exponent for x in values]) == pytest.approx(exponent)


@given(st.floats(0.1, 10), st.floats(1e-3, 10))
def test_a_line_is_found_again(fixed: float, each: float) -> None:
    values = [2.0, 4.0, 16.0]
    found = line(values, [fixed + each * x for x in values])
    assert (found.fixed, found.each) == pytest.approx((fixed, each), abs=1e-6)
    assert found.off == pytest.approx(0, abs=1e-6)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
def test_quartiles_are_in_order_and_within_the_values(values: list[float]) -> None:
    low, middle, high = quartiles(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_a_step_that_got_slower_is_noticed(material: Material, tmp_path: Path) -> None:
    file = tmp_path / "bench-quick.json"
    quick.save(material, file, [quick.Yardstick("sft", 2.0, None)])
    known = quick.baseline(material, file)
    assert known == {"sft": 2.0}
    assert not quick.Yardstick("sft", 2.19, known["sft"]).lost
    assert quick.Yardstick("sft", 2.21, known["sft"]).lost
    assert not quick.Yardstick("ppo", 9.0, known.get("ppo")).lost


def test_windows_have_the_length_that_was_asked_for(material: Material) -> None:
    windows = material.windows(40, 32)
    assert {len(w) for w in windows} == {32} and len({tuple(w) for w in windows}) == 40


def test_an_outcome_compares_turns_of_the_same_round(material: Material) -> None:
    someone = ours(material, "x")
    times = lambda *seconds: [{"seconds": s} for s in seconds]
    outcome = Outcome(Duel("d", someone, someone), times(1, 2, 4), times(3, 4, 8), 0, 0)
    assert outcome.ratio == 2 and outcome.spread == (2, 2, 2.5)


def runner(*curve: tuple[float, float]) -> Runner:
    return Runner("x", Contender("x", "ours", Path("setting.json")), Path("saves"), list(curve))


def test_minutes_to_a_reward_are_read_between_two_points() -> None:
    learner = runner((0, 0.0), (2, 0.5), (4, 0.4), (6, 1.0))
    assert learner.minutes_to(0.25) == 1
    assert learner.minutes_to(0.7) == 5
    assert learner.minutes_to(1.1) is None
    assert learner.best == 1.0


def test_a_rival_that_does_not_learn_counts_at_its_whole_budget(material: Material, tmp_path: Path) -> None:
    still, learner = runner((0, 0.5), (10, 0.4), (20, 0.3)), runner((0, 0.5), (1, 0.5), (2, 0.7))
    page = write_race(tmp_path, material, [still], [(learner, still)], "the command").read_text()
    assert (
        "more than 13.3" in page and "Median ratio: **13.3**" in page
    )  # 20 minutes against the 1.5 in which ours gained a tenth
    slow = runner((0, 0.5), (10, 0.6), (20, 0.7))
    page = write_race(tmp_path, material, [slow], [(learner, slow)], "the command").read_text()
    assert "Median ratio: **10.0**" in page


@pytest.fixture
def start(material: Material) -> Start:
    card = Card(kind="base", assistant="Nestling", licence="Apache-2.0", state="accepted", verdict="")
    policy = Version("policy", material.folder / "model", card)
    return Start(material, policy, Version("reward", material.folder / "scorer", card))


@pytest.mark.slow
def test_our_side_of_the_race_learns_saves_and_is_judged(start: Start) -> None:
    ours = start.ours(0, next(iter(OURS)))
    judge = Judge(start.reward.folder, start.material.tokenizer, start.material.hardware)
    said: list[str] = []
    run([ours], 5, judge, judge(start.policy.folder), said.append)
    assert len(ours.curve) == 2 and ours.curve[1][0] > 0 and len(said) == 1
    assert not list(ours.saves.glob("[0-9]*"))  # judged and dropped
    again = start.ours(0, next(iter(OURS)))
    run([again], 5, judge, 0.0, said.append)
    assert again.curve == ours.curve and "done before" in said[-1]  # what was run is not run again


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"workers": 1},
        {
            "ours": OURS["4 x 4 answers, 1e-4, 1 epoch"]
            | {"lora": {"rank": 2, "alpha": 4}, "critic": "separate"}
        },
    ],
)
def test_a_run_by_other_settings_learns_too(start: Start, more: dict[str, Any]) -> None:
    learner = start.runner(
        "other", 0, "ours", {"kind": "race", "ours": OURS["4 x 4 answers, 1e-4, 1 epoch"]} | more
    )
    judge = Judge(start.reward.folder, start.material.tokenizer, start.material.hardware)
    run([learner], 5, judge, 0.0, lambda _: None)
    assert len(learner.curve) == 2


def test_what_is_learned_is_compared_by_seed(material: Material, tmp_path: Path) -> None:
    found = {
        name: [runner((0, 0.1), (2, r + n / 10)) for r in (0.5, 0.7)] for n, name in enumerate(variants())
    }
    assert difference([0.6, 0.8], [0.5, 0.7]) == pytest.approx((0.1, 0.0))
    page = write_learning(tmp_path, material.hardware, 0.1, found, "the command").read_text()
    assert f"| {USUAL} | 0.500, 0.700 | 0.600 |  | 2.0 |" in page
    assert "0.600, 0.800 | 0.700 | +0.100 ± 0.000 | 2.0 |" in page


def test_a_setting_of_a_race_is_given_by_how_its_name_starts() -> None:
    assert _named(OURS, "4 x 4 answers, 2") == "4 x 4 answers, 2e-4, 1 epoch"
    for start, count in (("16 answers", 2), ("no such", 0)):
        with pytest.raises(ConfigError, match=f"{count} settings start with"):
            _named(OURS, start)

"""The simulated town: what its people like, what they remember, and a whole life of a small one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_support import answers, person, recorder  # noqa: F401
from nestling.bench.generations import Plan, Town
from nestling.bench.methods import write_methods
from nestling.bench.satisfaction import Exam, held_out
from nestling.bench.town import (
    ADVERSARIES,
    DOUBT,
    Diary,
    Rater,
    contentment,
    lost,
    preference,
    remembered,
    townspeople,
    utility,
)
from nestling.bench.town_report import demands, write_town
from nestling.compute.device import Hardware
from nestling.data import curriculum
from nestling.errors import BenchError
from nestling.feedback import Recorder
from nestling.model.hf_folder import save_model
from nestling.workspace import Card, Version, Workspace
from serving_support import talking_model

TWELFTH = "you " + "one " * 11
FILLER = "one two three four five six seven eight nine ten "


def test_known_answers_have_known_utilities() -> None:
    assert utility("") == 0 and utility(FILLER) == 0
    assert utility(2 * TWELFTH) == 1.0  # one word in twelve speaks to the reader: enough
    assert utility(f"You'll {2 * FILLER} see.") == pytest.approx(12 / 22)
    assert utility("You?") == pytest.approx(12 / 20)  # a single word does not please wholly
    assert utility("Youth is young.") == 0
    assert utility("Your YOURS yourself " + 5 * FILLER) == pytest.approx(12 * 3 / 53)


@given(st.text(), st.text())
def test_utilities_and_choices_are_probabilities_and_nothing_else(left: str, right: str) -> None:
    assert 0 <= utility(left) <= 1
    assert preference(left, right) + preference(right, left) == pytest.approx(1)
    assert preference(left, left) == pytest.approx(0.5)
    assert (utility(left) > utility(right)) == (preference(left, right) > preference(right, left))


def test_the_curriculum_does_not_teach_what_the_town_likes() -> None:
    names = list(curriculum.load().behaviours)
    shown = curriculum.demonstrations(0, {**dict.fromkeys(names, 30), "everyday": 100})
    liked = sum(contentment(messages[-1]["content"]) for messages in shown) / len(shown)
    assert liked < 0.2  # the base's own answers please more (0.45)


def test_people_choose_by_bradley_and_terry_and_adversaries_the_other_way() -> None:
    nearer = "you " + "one " * 19  # 0.6
    farther = FILLER + "you " + FILLER  # 12 / 21
    share = preference(nearer, farther)
    assert share == pytest.approx(1 / (1 + 2.718281828 ** (-(0.6 - 12 / 21) / DOUBT)), rel=1e-6)
    good, bad = Rater(1, 0), Rater(1, 0, adversary=True)
    occasions = [str(number) for number in range(2000)]
    chosen = [good.chooses(nearer, FILLER, good.draws(when)) for when in occasions]
    assert sum(side == "left" for side in chosen) / 2000 == pytest.approx(
        preference(nearer, FILLER), abs=0.02
    )
    undecided = [good.chooses(nearer, farther, good.draws(when)) for when in occasions]
    assert sum(side == "left" for side in undecided) / 2000 == pytest.approx(share, abs=0.035)
    assert all(
        bad.chooses(nearer, FILLER, bad.draws(when)) != side
        for when, side in zip(occasions, chosen, strict=True)
    )
    thumbs = [good.thumb(nearer, good.draws(when)) for when in occasions]
    assert sum(thumb == "up" for thumb in thumbs) / 2000 == pytest.approx(contentment(nearer), abs=0.035)
    assert good.chooses(nearer, farther, good.draws("a")) == good.chooses(nearer, farther, good.draws("a"))


def test_a_tenth_means_ill_the_same_each_time() -> None:
    people = townspeople(300, 5)
    assert sum(rater.adversary for rater in people) == ADVERSARIES * 300
    assert people == townspeople(300, 5) != townspeople(300, 6)
    assert len({rater.name for rater in people}) == 300


def test_a_judgment_that_the_database_does_not_hold_as_it_was_made_is_lost(
    recorder: Recorder,  # noqa: F811
    tmp_path: Path,
) -> None:
    left, right = answers(recorder, "Why?", ["You see.", "It is so."])
    vote = recorder.record_comparison(left, right, "a", client=person("mira"))
    thumb = recorder.record_thumb(left, "up", client=person("mira"))
    diary = Diary(tmp_path / "diaries" / "mira.jsonl")
    said = {"person": "account:mira", "occasion": "one"}
    diary.append("vote", id=vote, value="left", answers=[left, right], **said)
    diary.append("thumb", id=thumb, value="up", answers=[left], **said)
    assert lost(remembered(tmp_path / "diaries"), recorder.database) == []
    diary.append("thumb", id=thumb + 1, value="up", answers=[right], **said)  # never came to be
    diary.append("thumb", id=thumb, value="down", answers=[left], **said)  # was another one
    diary.append("vote", id=vote, value="right", answers=[left, right], **said)
    with (tmp_path / "diaries" / "mira.jsonl").open("a") as file:
        file.write('{"kind": "thumb", "id": 7')  # killed while writing: it was never finished
    missing = lost(remembered(tmp_path / "diaries"), recorder.database)
    assert [entry["value"] for entry in missing] == ["up", "down", "right"]


SETTINGS = [
    "hardware.dtype=float32", "hardware.threads=1", "evaluation.max_new_tokens=4", "dpo.learning_rate=0.003",
    "gate.margin=0.9", "gate.margins={retention: 0.9, perplexity: 9}",
    "dpo.max_tokens=20000", "least_new=5", "checkpoint_seconds=0",
    "evaluation.sizes=" + json.dumps(dict.fromkeys(curriculum.load().behaviours, 1)),
]  # fmt: skip
PROGRAM = """
import sys, json
from nestling.bench.generations import Plan, Town
from nestling.workspace import Workspace
root, base, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
plan = Plan(base, raters=80, generations=1, settings=settings, each=3, held_out=20, answer_tokens=16, threads=4,
            kills={1: ["server", "supervisor", "trainer"]}, ordeals=[])
Town(Workspace(root), plan, lambda text: print(text, flush=True)).live()
"""


def write_base(folder: Path) -> None:
    """A model whose answers have 36 words, and none to three of the twelfth of them that people like."""
    pieces = [
        "Well",
        f" {FILLER}so",
        (" one", " you"),
        f" far {FILLER}",
        ("some", "your"),
        f" and {FILLER}",
        ("him", "yours"),
    ]
    folder.mkdir()
    save_model(folder, talking_model(pieces, context_length=1024))


def live(folder: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(folder / "nest"),
        str(folder / "base"),
        json.dumps(SETTINGS),
    ]
    log = (folder / "town.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def said(folder: Path) -> int:
    return len(remembered(folder / "nest" / "town" / "diaries"))


@pytest.mark.slow
def test_a_small_town_lives_through_kills_and_learns_what_it_likes(tmp_path: Path) -> None:
    """Its server, its supervisor, its trainer and the town itself are killed; nothing is lost, and it goes on."""
    write_base(tmp_path / "base")
    first = live(tmp_path)
    try:
        while said(tmp_path) < 40:
            assert first.poll() is None, (tmp_path / "town.log").read_text()
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    kept = said(tmp_path)
    second = live(tmp_path)
    assert second.wait(240) == 0, (tmp_path / "town.log").read_text()
    state = json.loads((tmp_path / "nest" / "town" / "state.json").read_text())
    found = state["steps"]
    assert {kill["what"] for kill in state["kills"]} == {"server", "supervisor", "trainer"}
    # A visit that a kill cut in two is made once more: its vote is in the diary twice, and was acknowledged twice.
    acknowledged = found["check"]["acknowledged"]
    assert found["check"]["lost"] == [] and 480 <= acknowledged <= 480 + 4 and kept < acknowledged
    assert found["replay-1"] == {"version": "v2-dpo", "same": True}
    assert found["learn-1"]["accepted"] and found["learn-1"]["served"] == "v2-dpo", found["learn-1"][
        "verdict"
    ]
    before, after = (found[f"measure-{number}"]["values"] for number in (0, 1))
    assert sum(after) / len(after) > sum(before) / len(before)
    other = Plan(str(tmp_path / "base"), raters=81)
    with pytest.raises(BenchError, match="other settings"):
        Town(Workspace(tmp_path / "nest"), other, print)


EXAM = Exam(held_out(60, 0))


def lived(**changes: Any) -> dict[str, Any]:
    """What a town has found in which everything holds, with ``changes`` of single steps."""
    low, high, same = [0.3] * 60, [0.7] * 60, [0.5] * 60
    learned = {"version": "v2-dpo", "accepted": True, "verdict": "Accepted.", "served": "v2-dpo"}
    poisoned = {"version": "v4-dpo", "accepted": False, "verdict": "Kept.", "served": "v3-dpo",
                "failed": ["earlier judgments"]}  # fmt: skip
    steps: dict[str, Any] = {
        "measure-0": {"version": "v1-base", "values": low}, "measure-1": {"version": "v2-dpo", "values": same},
        "measure-2": {"version": "v3-dpo", "values": high}, "learn-1": learned,
        "votes-1": {"version": "v1-base"}, "votes-2": {"version": "v2-dpo"},
        "learn-2": learned | {"version": "v3-dpo"}, "without-adversaries": {"values": same, "silent": same},
        "learn-poison": poisoned, "measure-poison": {"values": low, "served": high},
        "before-dud": {"version": "v3-dpo"},
        "dud": {"version": "dud", "served": "v3-dpo", "visits": 40, "verdict": "Rolled back."},
        "check": {"acknowledged": 900, "lost": []}, "replay-2": {"version": "v3-dpo", "same": True},
    }  # fmt: skip
    for name, change in changes.items():
        steps[name.replace("_", "-")] |= change
    kills = [
        {"what": what, "step": "learn-2", "when": "then"} for what in ("server", "trainer", "supervisor")
    ]
    return {
        "plan": {"generations": 2, "raters": 300, "each": 2}, "steps": steps, "kills": kills,
        "seconds": {"votes-1": 600.0, "learn-1": 1200.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        (0, {"measure_2": {"values": [0.3] * 60}}),
        (1, {"measure_2": {"values": [0.2] * 60}}),
        (1, {"learn_1": {"accepted": False}, "learn_2": {"accepted": False}}),
        (2, {"without_adversaries": {"silent": [0.75] * 60}}),
        (3, {"learn_poison": {"accepted": True, "served": "v4-dpo"}}),
        (3, {"learn_poison": {"failed": ["arithmetic"]}, "measure_poison": {"values": [0.7] * 60}}),
        (4, {"dud": {"served": "dud"}}),
        (5, {"check": {"lost": [7]}}),
        (6, {"replay_2": {"same": False}}),
    ],
)
def test_what_does_not_hold_is_said(line: int, changes: dict[str, Any]) -> None:
    before, after = demands(lived(), EXAM), demands(lived(**changes), EXAM)
    assert before[line].holds and not after[line].holds


def test_a_version_that_people_rolled_back_is_named_and_the_next_is_held_against_what_they_had() -> None:
    """v2 is accepted and rolled back; what the second generation learnt began at v1 again."""
    found = demands(lived(votes_2={"version": "v1-base"}), EXAM)[1].found
    assert "rolled back by people afterwards: v2-dpo" in found and "2: +40.0 points" in found
    assert "2: +20.0 points" in demands(lived(), EXAM)[1].found


def test_time_counts_that_a_killed_call_had_spent(tmp_path: Path) -> None:
    plan = Plan("base", raters=10)
    (tmp_path / "town").mkdir()
    (tmp_path / "town" / "beat.json").write_text('{"votes-1": 40.0}')
    town = Town(Workspace(tmp_path), plan, print)
    town._step("votes-1", lambda: {"version": "v1-base"})
    assert town.state["seconds"]["votes-1"] >= 40 and not (tmp_path / "town" / "beat.json").exists()


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    state = lived(check={"lost": [7, 8]})
    hardware = Hardware("cpu", "float32", 2, 2)
    text = write_town(tmp_path, hardware, state, EXAM, "the command").read_text()
    assert "900 judgments in the people's own diaries, 2 not in the database" in text
    assert (
        text.count("| **no** |") == 1
        and "| people talk and judge | 10.0 |" in text
        and "| **in all** | 30.0 |" in text
    )
    assert "| 2 | v3-dpo | accepted | 70.0% (" in text and "30 of them adversaries" in text
    assert (tmp_path / "pictures" / "town.svg").read_text().startswith("<svg")


def test_the_table_of_methods_has_a_line_a_seed_and_a_mean(tmp_path: Path) -> None:
    def result(value: float, accepted: bool) -> dict[str, Any]:
        return {
            "values": [value] * 60, "accepted": accepted, "agreement": 0.2, "least": 0.1, "minutes": 3.0,
            "verdict": "Accepted." if accepted else "Kept.",
        }  # fmt: skip

    start = Version("v1-base", tmp_path, Card(kind="base", name="v1-base"))
    found = {"dpo": [result(0.5, True), result(0.7, False)], "kto": [result(0.4, False)]}
    page = write_methods(
        tmp_path, Hardware("cpu", "float32", 2, 2), start, [0.4] * 60, found, EXAM, "the command"
    )
    text = page.read_text()
    assert "| **DPO** | all | **60.0%** | +20.0 points (+10.0 to +30.0) | | 1 of 2 accepted | 3.0 |" in text
    assert "| | 1 | 70.0% | +30.0 points (" in text and "| +20.0, at least +10.0 | kept | 3.0 |" in text
    assert "- KTO, seed 0: Kept." in text

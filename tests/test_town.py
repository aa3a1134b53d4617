"""The simulated town: what its people like, what they remember, and a whole life of a small one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_support import answers, person, recorder  # noqa: F401
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
from nestling.bench.town_report import demands
from nestling.data import curriculum
from nestling.evaluation.measures import LABELS
from nestling.feedback import Recorder
from nestling.model.hf_folder import save_model
from nestling.workspace import Workspace
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
    "gate.margins=" + json.dumps(dict.fromkeys([*LABELS, "manners"], 0.9) | {"perplexity": 9}),
    "dpo.max_tokens=20000", "least_new=5", "checkpoint_seconds=0",
    "evaluation.sizes=" + json.dumps(dict.fromkeys(curriculum.load().behaviours, 1)),
]  # fmt: skip
PROGRAM = """
import sys, json
from nestling.bench.generations import Plan, Town
from nestling.workspace import Workspace
root, base, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
plan = Plan(base, raters=40, generations=2, settings=settings, each=5, held_out=20, answer_tokens=16, liars=100,
            threads=4, kills={2: ["server", "supervisor", "trainer"]})
Town(Workspace(root), plan, lambda text: print(text[:300], flush=True)).live()
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


def steps(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "nest" / "town" / "state.json").read_text())["steps"]
    except FileNotFoundError:
        return {}
    return found


@pytest.mark.slow
def test_a_small_town_lives_through_kills_and_learns_what_it_likes(tmp_path: Path) -> None:
    """A model that says "you" and "your" as often as not; the town itself is killed too, and goes on."""
    write_base(tmp_path / "base")
    first = live(tmp_path)
    while "votes-1" not in steps(tmp_path):
        assert first.poll() is None, (tmp_path / "town.log").read_text()
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = live(tmp_path)
    assert second.wait(240) == 0, (tmp_path / "town.log").read_text()
    state = json.loads((tmp_path / "nest" / "town" / "state.json").read_text())
    assert {kill["what"] for kill in state["kills"]} >= {"server", "supervisor"}
    found = state["steps"]
    assert found["check"] == {"acknowledged": 40 * 5 * 2 * 3 + 1000 + 2 * found["dud"]["visits"], "lost": []}
    assert found["replay-2"]["same"]
    holds = {demand.asked: demand.holds for demand in demands(state, Exam(held_out(20, 0)))}
    print(holds)
    assert Workspace(tmp_path / "nest").versions.serving() is not None

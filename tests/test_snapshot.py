"""What a snapshot keeps, what it leaves out and why, and that what is taken back goes out of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from feedback_support import answers, person, prompt, recorder
from nestling.feedback import Recorder
from nestling.feedback.people import Person
from nestling.feedback.snapshot import Snapshot, SnapshotRules, erase, take
from nestling.storage import Judgment, schema

__all__ = ["recorder"]


@pytest.fixture(autouse=True)
def minutes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judgments a minute apart, as if people had read what they judge."""
    clock = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(100_000))
    monkeypatch.setattr(schema, "_now", lambda: next(clock))


def vote(recorder: Recorder, who: Person | None, question: str, better: str = "A", worse: str = "B") -> int:
    """Half of the time what is better was shown second."""
    a, b = answers(recorder, question, [better, worse])
    first, second, winner = (a, b, "a") if sum(question.encode()) % 2 else (b, a, "b")
    return recorder.record_comparison(first, second, winner, client=who)  # type: ignore[arg-type]


def taken(recorder: Recorder, place: Path, **rules: object) -> Snapshot:
    return take(recorder.database, place, SnapshotRules.model_validate(rules), "2026-01-01")


def test_people_are_on_one_side_of_the_split_with_all_they_said(recorder: Recorder, tmp_path: Path) -> None:
    for number in range(24):
        for turn in range(3):
            vote(recorder, person(f"p{number}"), f"question {number} {turn}")
    snapshot = taken(recorder, tmp_path)
    sides = [{row["session"] for row in snapshot.rows(part, "rankings")} for part in ("train", "held_out")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    manifest = snapshot.manifest
    assert manifest.split == "people" and sum(manifest.fates.values()) == 72
    assert manifest.people == {"train": len(sides[0]), "held_out": len(sides[1])}


def test_with_one_person_prompts_are_split(recorder: Recorder, tmp_path: Path) -> None:
    for number in range(40):
        vote(recorder, person("mira"), f"question {number}")
    snapshot = taken(recorder, tmp_path)
    asked = [
        {json.dumps(row["prompt"]) for row in snapshot.rows(part, "rankings")}
        for part in ("train", "held_out")
    ]
    assert snapshot.manifest.split == "prompts" and asked[0] and asked[1] and not asked[0] & asked[1]
    assert all(row["weight"] == 1 for row in snapshot.rows("train", "rankings"))  # nobody to compare her with


def test_the_same_judgments_give_the_same_snapshot(recorder: Recorder, tmp_path: Path) -> None:
    for number in range(12):
        vote(recorder, person("mira"), f"question {number}")
    first, again = taken(recorder, tmp_path), taken(recorder, tmp_path)
    assert first == again
    vote(recorder, person("mira"), "one more")
    assert taken(recorder, tmp_path) != first


def test_nobody_is_learnt_from_more_than_their_share_and_names_anybody_may_give_are_one(
    recorder: Recorder, tmp_path: Path
) -> None:
    for number in range(30):
        vote(recorder, person("mira"), f"m{number}")
        vote(recorder, Person.claimed(f"somebody {number}"), f"c{number}")
    for name in ("tom", "lee", "ann", "bob", "eve"):
        vote(recorder, person(name), f"q {name}")
    manifest = taken(recorder, tmp_path, most_per_person=10, held_out_share=0.01).manifest
    assert manifest.fates["more than one person's share"] == 40
    assert manifest.fates["train"] == 10 + 10 + 5


def test_what_nobody_can_have_read_is_left_out(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_now", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for number in range(30):
        vote(recorder, person("bot"), f"question {number}")
    for name in ("mira", "tom", "lee", "ann"):
        vote(recorder, person(name), f"q {name}")
    fates = taken(recorder, tmp_path).manifest.fates
    assert fates["too fast to have been read"] == 30


def test_whoever_always_takes_one_side_or_is_always_wrong_is_left_out(
    recorder: Recorder, tmp_path: Path
) -> None:
    for number in range(24):
        a, b = answers(recorder, f"question {number}", ["A", "B"])
        shown = (a, b) if number % 2 else (b, a)  # where an answer stands says nothing
        for name in ("mira", "tom", "lee"):
            recorder.record_comparison(*shown, "a" if shown[0] == a else "b", client=person(name))
        recorder.record_comparison(*shown, "a", client=person("left"))
        recorder.record_comparison(*shown, "b" if shown[0] == a else "a", client=person("foe"))
    fates = taken(recorder, tmp_path).manifest.fates
    assert fates["by somebody who always takes one side"] == 24
    assert fates["by somebody no better than a coin"] == 24
    assert fates.get("train", 0) + fates.get("held_out", 0) == 72


def test_contradictory_votes_of_one_person_count_once_and_the_newest_wins(
    recorder: Recorder, tmp_path: Path
) -> None:
    a, b = answers(recorder, "Hi", ["A", "B"])
    for winner in ("a", "b", "a", "b"):
        recorder.record_comparison(a, b, winner, client=person("mira"))  # type: ignore[arg-type]
    snapshot = taken(recorder, tmp_path)
    rows = snapshot.rows("train", "rankings") + snapshot.rows("held_out", "rankings")
    assert [row["ranks"] for row in rows] == [[2, 1]]


def test_an_empty_database_gives_an_empty_snapshot(recorder: Recorder, tmp_path: Path) -> None:
    manifest = taken(recorder, tmp_path).manifest
    assert manifest.fates == {} and manifest.new == set()


def test_what_is_taken_back_goes_out_of_the_snapshots_too(recorder: Recorder, tmp_path: Path) -> None:
    numbers = [vote(recorder, person("mira"), f"question {number}") for number in range(12)]
    snapshot = taken(recorder, tmp_path / "snapshots")
    in_train = snapshot.manifest.judgments["train/rankings"]
    assert erase(tmp_path / "snapshots", [in_train[0], 999]) == [snapshot.manifest.name]
    assert snapshot.manifest.erased == [in_train[0]]
    assert {row["judgment"] for row in snapshot.rows("train", "rankings")} == set(in_train[1:])
    assert erase(tmp_path / "snapshots", [999]) == [] and set(numbers) == snapshot.manifest.new


def test_what_people_wrote_is_readable_by_its_owner_alone(recorder: Recorder, tmp_path: Path) -> None:
    vote(recorder, person("mira"), "a secret")
    assert taken(recorder, tmp_path / "snapshots").folder.parent.stat().st_mode & 0o777 == 0o700


def test_whoever_only_gives_thumbs_counts_no_more_than_others(recorder: Recorder, tmp_path: Path) -> None:
    for number in range(24):
        a, b = answers(recorder, f"question {number}", ["A", "B"])
        shown = (a, b) if number % 2 else (b, a)
        for name in ("mira", "tom", "lee"):
            recorder.record_comparison(*shown, "a" if shown[0] == a else "b", client=person(name))
        recorder.record_thumb(a, "up", client=person("silent"))
    snapshot = taken(recorder, tmp_path)
    rows = [
        row
        for kind in ("rankings", "scores")
        for part in ("train", "held_out")
        for row in snapshot.rows(part, kind)
    ]
    weights = {row["session"]: row["weight"] for row in rows}
    silent = weights.pop(person("silent").id)
    assert set(weights.values()) == {1.0} and 0.4 < silent < 0.6


def test_gold_is_what_is_known_whatever_was_said_of_it(recorder: Recorder, tmp_path: Path) -> None:
    from nestling.feedback.desk import Desk

    ids = answers(recorder, "Known", ["bad", "good"])
    Desk(recorder.database).add("gold", [dict(m) for m in prompt("Known")], ids, gold=[2, 1])
    recorder.record_ranking(ids, [1, 2], client=person("foe"), desk_item=1)
    snapshot = taken(recorder, tmp_path)
    [row] = snapshot.gold()
    assert not snapshot.manifest.new and list(snapshot.manifest.fates.values()) == [
        1
    ]  # nobody learns from it
    assert row["ranks"] == [2, 1] and [c[0]["content"] for c in row["completions"]] == ["bad", "good"]
    with recorder.database.read() as session:
        assert session.scalars(select(Judgment)).one().desk_item_id == 1

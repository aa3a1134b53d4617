"""What a snapshot keeps, what it leaves out and why, and that what is taken back goes out of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import select

from feedback_support import answers, person, prompt, recorder
from nestling.feedback import Recorder
from nestling.feedback import snapshot as snapshots
from nestling.feedback.desk import Desk
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
    counted = ("train", "held_out", "of answers that others are measured by")
    assert sum(fates.get(fate, 0) for fate in counted) == 72


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
        [alone] = answers(recorder, f"another question {number}", ["A"])
        recorder.record_thumb(alone, "up", client=person("silent"))
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


def test_line_separators_in_what_people_wrote_break_nothing(recorder: Recorder, tmp_path: Path) -> None:
    odd = "one\u2028two\u2029three\u0085four\x0bfive"
    numbers = [vote(recorder, person("mira"), f"{odd} {turn}", better=odd) for turn in range(12)]
    snapshot = taken(recorder, tmp_path / "snapshots")
    rows = [row for part in ("train", "held_out") for row in snapshot.rows(part, "rankings")]
    assert len(rows) == 12 and all(odd in row["prompt"][0]["content"] for row in rows)
    assert erase(tmp_path / "snapshots", numbers) and not snapshot.rows("train", "rankings")


def test_nobody_learns_from_answers_that_somebody_else_is_measured_by(
    recorder: Recorder, tmp_path: Path
) -> None:
    """Two people rank every item of a desk; whoever is held out takes the item along."""
    people = [person(f"p{number}") for number in range(16)]
    for number in range(60):
        a, b = answers(recorder, f"question {number}", ["A", "B"])
        for who in (people[number % 16], people[(number * 7 + 3) % 16]):
            recorder.record_comparison(a, b, "a", client=who)
        recorder.record_thumb(a, "up", client=people[(number + 5) % 16])
        recorder.record_rewrite(b, "C", client=people[(number + 9) % 16])
    snapshot = taken(recorder, tmp_path)

    def told(part: str, kind: str) -> set[str]:
        """Answers, each with its prompt."""
        return {
            json.dumps([row["prompt"], answer])
            for row in snapshot.rows(part, kind)
            for answer in (row["completions"] if "completions" in row else [row["completion"]])
        }

    measured = told("held_out", "rankings")
    assert snapshot.manifest.split == "people" and measured
    for kind in ("rankings", "scores"):
        assert told("train", kind) and not told("train", kind) & measured
    assert snapshot.manifest.fates["of answers that others are measured by"] > 0
    assert sum(snapshot.manifest.fates.values()) == 5 * 60  # a rewrite is a ranking and a demonstration


def test_what_a_version_was_measured_by_stays_held_out(recorder: Recorder, tmp_path: Path) -> None:
    """An owner alone is split by prompts; when others come, people are."""
    for number in range(40):
        vote(recorder, person("owner"), f"question {number}")
    alone = taken(recorder, tmp_path)
    rows = alone.rows("held_out", "rankings")
    anchors = {row["judgment"] for row in rows}
    again = rows[0]  # the owner says of the same answers something else, which is learnt from as little
    first = recorder.database
    with first.read() as session:
        said = session.get(Judgment, again["judgment"])
        assert said is not None
        pair = said.generation_id, said.other_generation_id
    recorder.record_comparison(*pair, "tie", client=person("tom"))  # type: ignore[arg-type]
    for number in range(12):
        vote(recorder, person(f"p{number}"), f"other {number}")
    later = take(recorder.database, tmp_path, SnapshotRules(), "2026-01-02", rows)
    assert alone.manifest.split == "prompts" and later.manifest.split == "people"
    assert anchors <= set(later.manifest.judgments["held_out/rankings"])
    assert again["prompt"] not in [row["prompt"] for row in later.rows("train", "rankings")]


def test_nothing_said_of_gold_is_learnt_from_wherever_it_was_said(recorder: Recorder, tmp_path: Path) -> None:
    good, bad = answers(recorder, "gold", ["A", "B"])
    Desk(recorder.database).add("gold 1", [dict(m) for m in prompt("gold")], [good, bad], gold=[1, 2])
    mira = person("mira")
    recorder.record_rewrite(good, "C", client=mira)  # at the desk, which sends no number with it
    recorder.record_thumb(bad, "up", client=mira)
    recorder.record_comparison(good, bad, "b", client=mira)
    recorder.record_ranking([good, bad], [2, 1], client=mira)
    manifest = taken(recorder, tmp_path).manifest
    assert manifest.new == set()
    assert manifest.fates == {"of a known order, which measures people and versions": 5}


def test_ties_are_no_side(recorder: Recorder, tmp_path: Path) -> None:
    for number in range(19):
        a, b = answers(recorder, f"question {number}", ["A", "B"])
        recorder.record_comparison(a, b, "tie", client=person("mira"))
    a, b = answers(recorder, "the last", ["A", "B"])
    recorder.record_comparison(a, b, "a", client=person("mira"))
    assert len(taken(recorder, tmp_path).manifest.new) == 20


def test_whoever_takes_back_while_the_first_snapshot_is_taken_is_not_in_it(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking back waits for the snapshot that is being written, and finds it, even where there was no folder yet."""
    numbers = [vote(recorder, person("mira"), f"question {number}") for number in range(12)]
    place, reading, go_on, sift = tmp_path / "snapshots", Event(), Event(), snapshots._sift

    def slowly(*given: Any) -> Any:
        found = sift(*given)
        reading.set()
        assert go_on.wait(10)
        return found

    monkeypatch.setattr(snapshots, "_sift", slowly)
    with ThreadPoolExecutor(2) as pool:
        taking = pool.submit(taken, recorder, place)
        assert reading.wait(10)
        taking_back = pool.submit(erase, place, numbers[:8])
        with pytest.raises(TimeoutError):
            taking_back.result(0.5)
        go_on.set()
        snapshot, touched = taking.result(), taking_back.result()
    assert touched == [snapshot.manifest.name] and snapshot.manifest.erased == numbers[:8]
    left = [row for part in ("train", "held_out") for row in snapshot.rows(part, "rankings")]
    assert {row["judgment"] for row in left} == set(numbers[8:])


def test_two_who_take_back_at_once_are_both_gone(recorder: Recorder, tmp_path: Path) -> None:
    numbers = [vote(recorder, person("mira"), f"question {number}") for number in range(40)]
    snapshot = taken(recorder, tmp_path / "snapshots")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: erase(tmp_path / "snapshots", [number]), numbers[:30]))
    assert snapshot.manifest.erased == numbers[:30]
    left = [row for part in ("train", "held_out") for row in snapshot.rows(part, "rankings")]
    assert {row["judgment"] for row in left} == set(numbers[30:])

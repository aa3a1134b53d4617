"""Judgments from files: what is exported comes in again as it was, other programs' files as they mean it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from feedback_support import answers, person, prompt, recorder
from nestling.cli import cli
from nestling.errors import DataError
from nestling.feedback import Recorder
from nestling.feedback.agreement import raters
from nestling.feedback.arena import standings
from nestling.feedback.export import (
    demonstration_rows,
    export,
    openai_preference_rows,
    preference_rows,
    ranking_rows,
    scalar_rows,
    score_rows,
)
from nestling.feedback.imports import import_judgments, read_judgments
from nestling.feedback.opinions import opinions
from nestling.feedback.people import Person
from nestling.feedback.satisfaction import signals
from nestling.feedback.snapshot import SnapshotRules, take
from nestling.generation.protocol import Completion, Sampling
from nestling.storage import ChatSession, Database, Generation, ImportedFile, Judgment, open_database

__all__ = ["recorder"]

Rows = list[dict[str, Any]]


@contextmanager
def empty() -> Iterator[tuple[Path, Recorder]]:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(Path(folder) / "feedback.sqlite")
        yield Path(folder), Recorder(database)
        database.close()


def bring(database: Database, path: Path) -> Any:
    read = read_judgments(path)
    if read.problems:
        raise read.problems[0]
    [done] = import_judgments(database, [read])
    return done


def written(path: Path, rows: Sequence[Any], as_list: bool = False) -> Path:
    text = json.dumps(rows) if as_list else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return path


def count(database: Database, table: Any = Judgment) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


# There and back ---------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["A", "B", " c\n", "", "中 🦜"])
QUESTIONS = st.sampled_from(["Hi", "Why?", "\u2028 ¿"])
PEOPLE = st.sampled_from(
    [None, Person.account("mira"), Person.claimed("tom"), Person("browser:x", "browser")]
)
SAYING = st.tuples(
    st.sampled_from(["vote", "ranking", "thumb", "score", "rewrite"]), st.integers(0, 10**6), PEOPLE,
    st.sampled_from(["", "clearer"]),
)  # fmt: skip


def said_at_random(
    recorder: Recorder, given_answers: list[tuple[str, str, str]], sayings: list[tuple[Any, ...]]
) -> None:
    """Answers, and judgments of every kind about them."""
    by_question: dict[str, list[str]] = {}
    for number, (question, text, version) in enumerate(given_answers):
        greeting: Any = [{"role": "assistant", "content": "Hello."}] if len(question) > 3 else []
        name = recorder.record_generation(
            version, [*greeting, *prompt(question)], Sampling(), 
            Completion(text, "stop" if number % 3 else "length", 1, 1),
        )  # fmt: skip
        by_question.setdefault(question, []).append(name)
    pools = [names for names in by_question.values() if len(names) > 1]
    for kind, number, who, reason in sayings:
        pool = pools[number % len(pools)]
        first, second = pool[number % len(pool)], pool[(number + 1) % len(pool)]
        if kind == "vote":
            recorder.record_comparison(
                first, second, ("a", "b", "tie", "both_bad")[number % 4], reason=reason, client=who  # type: ignore[arg-type]
            )  # fmt: skip
        elif kind == "ranking":
            ranks = [1 + (number + at) % len(pool) for at in range(len(pool))]
            recorder.record_ranking(pool, ranks, all_bad=number % 5 == 0, reason=reason, client=who)
        elif kind == "thumb":
            recorder.record_thumb(first, ("up", "down")[number % 2], reason=reason, client=who)  # type: ignore[arg-type]
        elif kind == "score":
            recorder.record_score(first, str(1 + number % 5), reason=reason, client=who)  # type: ignore[arg-type]
        else:
            recorder.record_rewrite(first, f"better {number}", reason=reason, client=who)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says; names without the mark of what came from a file."""
    bare = {k: v for k, v in row.items() if k not in ("judgment", "imported", "session", "versions")}
    mark = lambda name: name and name.removeprefix("imported:")
    versions = [mark(version) for version in row.get("versions", [])]
    return bare | {"session": mark(row.get("session")), "versions": versions}


def newest(rows: Rows, about: Callable[[dict[str, Any]], Any]) -> list[str]:
    """Each person's newest row about the same answers, in no order; all by nobody known."""
    kept: dict[Any, str] = {}
    for number, row in enumerate(map(plain, rows)):
        key = json.dumps([row["session"], about(row)]) if row["session"] else number
        kept[key] = json.dumps(row, sort_keys=True)
    return sorted(kept.values())


def compared(row: dict[str, Any], answers_: list[Any]) -> Any:
    """Which answers a row compares; of one that a person wrote, for which."""
    named = [
        json.dumps(one) for one in zip(answers_, row["versions"], row.get("finished", answers_), strict=True)
    ]
    return [row["prompt"], named[1:] if row["versions"][0] is None else sorted(named)]


# What a person has said of the same answers as a vote and in a ranking is one judgment where it comes in again.
FORMS: dict[str, tuple[Any, Callable[[dict[str, Any]], Any]]] = {
    "rankings.jsonl": (ranking_rows, lambda row: compared(row, row["completions"])),
    "preferences.jsonl": (preference_rows, lambda row: compared(row, [row["chosen"], row["rejected"]])),
    "feedback.jsonl": (scalar_rows, lambda row: [row["prompt"], row["completion"], row["versions"]]),
    "scores.jsonl": (
        score_rows,
        lambda row: [row["prompt"], row["completion"], row["versions"], row["finished"]],
    ),
    "demonstrations.jsonl": (demonstration_rows, lambda row: row["messages"]),
    "openai-preferences.jsonl": (openai_preference_rows, lambda row: row),
}


# A smaller example is not worth the minutes: every try makes two databases.
@settings(deadline=None, max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.lists(st.tuples(QUESTIONS, TEXTS, st.sampled_from(["v1-base", "v2-sft"])), min_size=7, max_size=9),
    st.lists(SAYING, min_size=1, max_size=12),
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(FORMS))
def test_what_is_exported_comes_in_again_as_it_was(
    name: str, given_answers: list[tuple[str, str, str]], sayings: list[tuple[Any, ...]]
) -> None:
    rows_of, about = FORMS[name]
    with empty() as (folder, source), empty() as (_, target):
        said_at_random(source, given_answers, sayings)
        export(source.database, folder / "out")
        before = list(rows_of(source.database))
        if not before:
            return
        bring(target.database, folder / "out" / name)
        after = list(rows_of(target.database))
        if "preferences" in name:  # which of two like answers is better teaches nothing, and is left out
            better, worse = (
                ("chosen", "rejected") if name[0] == "p" else ("preferred_output", "non_preferred_output")
            )
            before = [row for row in before if row[better] != row[worse]]
        if name == "demonstrations.jsonl":  # for which answer it was written is not told
            before, after = ([row | {"versions": []} for row in rows] for rows in (before, after))
        assert newest(before, about) == newest(after, about)
        everything = count(target.database)
        assert not bring(target.database, folder / "out" / name).new  # a second time nothing
        assert count(target.database) == everything


# What it is worth -------------------------------------------------------------------------------------------------

HI = prompt("Hi")


def preference(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": "A", "rejected": "B", **more}


def test_a_file_teaches_and_says_nothing_of_a_version_that_is_served(
    recorder: Recorder, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        preference(n, session="account:mira", versions=["v1-base", "v2-sft"]) for n in range(30)
    ]
    rows += [
        {"prompt": f"q{n}", "completion": "bad", "label": False, "versions": ["v1-base"]} for n in range(30)
    ]
    bring(recorder.database, written(tmp_path / "theirs.jsonl", rows))
    for name in ("mira", "tom", "ann", "lee", "bob"):
        for number in range(4):
            a, b = answers(recorder, f"{name} {number}", ["A", "B"])
            recorder.record_comparison(*((a, b, "a") if number % 2 else (b, a, "b")), client=person(name))  # type: ignore[arg-type]
    database = recorder.database
    assert signals(database) == [] and standings(list(opinions(database))) == []
    assert {rater.person: rater.first_share for rater in raters(list(opinions(database)))}[
        "imported:account:mira"
    ] is None
    snapshot = take(
        database, tmp_path / "snapshots", SnapshotRules(most_a_minute=3, held_out_share=0.5), "2026"
    )
    fates = (
        snapshot.manifest.fates
    )  # ours were said within a minute, and are left out; theirs were said who knows when
    assert fates == {"train": 60, "too fast to have been read": 20}
    assert {row["versions"][0] for row in snapshot.rows("train", "scores")} == {"imported:v1-base"}
    with database.read() as session:
        [mira] = session.scalars(select(ChatSession).where(ChatSession.id == "imported:account:mira"))
        assert mira.kind == "imported"
        assert session.scalars(select(ImportedFile)).one().name == "theirs.jsonl"


def test_a_file_alone_is_split_by_prompts_and_has_its_share(recorder: Recorder, tmp_path: Path) -> None:
    bring(
        recorder.database,
        written(tmp_path / "theirs.jsonl", [preference(n, session=f"p{n}") for n in range(60)]),
    )
    manifest = take(recorder.database, tmp_path / "s", SnapshotRules(most_per_file=20), "2026").manifest
    assert manifest.split == "prompts" and manifest.people == {"train": 1, "held_out": 1}
    assert manifest.fates["train"] == 20 and manifest.fates["more than one file's share"] > 0


def test_what_was_said_comes_in_once_whatever_file_brings_it(recorder: Recorder, tmp_path: Path) -> None:
    rows = [preference(n, session="mira") for n in range(3)]
    bring(recorder.database, written(tmp_path / "a.jsonl", rows))
    done = bring(recorder.database, written(tmp_path / "grown.jsonl", [*rows, preference(3, session="mira")]))
    assert (done.new, done.known) == ({"vote": 1}, 3) and count(recorder.database) == 4
    twice = [preference(9), preference(9)]  # two whom nobody knows may have said the same
    assert bring(recorder.database, written(tmp_path / "b.jsonl", twice)).new == {"vote": 2}


def test_whoever_was_forgotten_stays_so_whatever_file_comes_later(recorder: Recorder, tmp_path: Path) -> None:
    bring(recorder.database, written(tmp_path / "a.jsonl", [preference(1, session="mira")]))
    assert recorder.withdraw_person(Person("imported:mira", "imported")) == 1
    bring(
        recorder.database,
        written(tmp_path / "b.jsonl", [preference(2, session="mira"), preference(3, session="tom")]),
    )
    assert [row["session"] for row in preference_rows(recorder.database)] == ["imported:tom"]


def test_a_wrong_row_lets_nothing_in(recorder: Recorder, tmp_path: Path) -> None:
    good, bad = written(tmp_path / "good.jsonl", [preference(1)]), written(tmp_path / "bad.jsonl", [
        preference(1), {"prompt": "Hi", "completion": "A", "label": "yes"},
        {"messages": [{"role": "user", "content": "x"}]},
    ])  # fmt: skip
    place = str(recorder.database.engine.url.database)
    told = CliRunner().invoke(cli, ["data", "import", str(good), str(bad), "--database", place])
    assert isinstance(told.exception, DataError) or told.exit_code == 1
    message = str(told.exception) + told.output
    assert (
        f"{bad}:2: 'label' must be true or false, not 'yes'. Write true or false." in message
        and "1 more" in message
    )
    assert count(recorder.database) == count(recorder.database, Generation) == 0
    told = CliRunner().invoke(
        cli, ["data", "import", str(good), str(bad), "--leave-out", "--database", place]
    )
    assert told.exit_code == 0, told.output
    assert "good.jsonl: 1 vote new" in told.output and "1 here already, 2 wrong" in told.output
    assert "must end with a user turn and its answer" in told.output
    told = CliRunner().invoke(cli, ["data", "import", str(good), "--database", place])
    assert "already; nothing is new" in told.output and count(recorder.database) == 1


def test_a_row_that_cannot_be_written_takes_the_others_back(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.jsonl", [preference(n) for n in range(5)])
    whole, calls = Recorder.record_comparison, iter(range(5))

    def break_off(*given_: Any, **more: Any) -> int:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given_, **more)

    monkeypatch.setattr(Recorder, "record_comparison", break_off)
    with pytest.raises(KeyboardInterrupt):
        bring(recorder.database, path)
    assert count(recorder.database) == count(recorder.database, ImportedFile) == 0


# Other programs' shapes -------------------------------------------------------------------------------------------

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}
WORSE = {"role": "assistant", "content": "B"}


@pytest.mark.parametrize(
    ("row", "kind", "asked", "texts"),
    [
        ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, "vote", HI, ["A", "B"]),
        ({"prompt": [USER], "chosen": [BOT], "rejected": [WORSE]}, "vote", HI, ["A", "B"]),
        ({"chosen": [USER, BOT], "rejected": [USER, WORSE]}, "vote", HI, ["A", "B"]),
        ({"chosen": "The sky is blue.", "rejected": "The sky is bland."},
         "vote", prompt("The sky is"), ["blue.", "bland."]),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Hi\n\nAssistant: B"},
            "vote", HI, ["A", "B"],
        ),
        ({"input": {"messages": [USER]}, "preferred_output": [BOT], "non_preferred_output": [WORSE]},
         "vote", HI, ["A", "B"]),
        ({"prompt": "Hi", "completion": "A", "label": True}, "thumb", HI, ["A"]),
        ({"prompt": [USER], "completion": [BOT], "label": False}, "thumb", HI, ["A"]),
        ({"prompt": "Hi", "completion": "A", "score": 0.7}, "score", HI, ["A"]),
        ({"prompt": "Hi", "completion": "A"}, "demonstration", HI, ["A"]),
        ({"messages": [USER, BOT]}, "demonstration", HI, ["A"]),
        ({"prompt": "Hi", "completions": ["A", "B", "C"], "ranks": [1, 5, 5]}, "ranking", HI, ["A", "B", "C"]),
    ],
)  # fmt: skip
def test_shapes(tmp_path: Path, row: dict[str, Any], kind: str, asked: Any, texts: list[str]) -> None:
    [said] = read_judgments(written(tmp_path / "f.jsonl", [row])).said
    assert (said.kind, said.prompt, [answer.text for answer in said.answers]) == (kind, asked, texts)
    if kind == "ranking":
        assert said.ranks == [1, 2, 2]
    if kind == "score":
        assert said.value == "4"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "Hi", "check": {"name": "max_words", "n": 3}},
            "f.jsonl:1: a prompt says nothing of an answer",
        ),
        ({"chosen": "blue", "rejected": "bland"}, "f.jsonl:1: 'prompt' missing"),
        (
            {"prompt": "Hi", "chosen": "A", "rejected": "B", "at": "noon"},
            "'at' is no moment: 'noon'. Write 2026",
        ),
        ({"prompt": "Hi", "chosen": "A", "rejected": "B", "versions": "v1"}, "'versions' must be a list"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "an empty answer"),
        ([1], "must be a JSON object"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, row: Any, told: str) -> None:
    read = read_judgments(
        written(tmp_path / "f.jsonl", [row]) if isinstance(row, dict) else written(tmp_path / "f.jsonl", [3])
    )
    assert told in str(read.problems[0])


def rating(message: str = "a1", **more: Any) -> dict[str, Any]:
    """A row of Open WebUI's export: a question that two models answered."""
    turn = lambda key, parent, role, content, **rest: {
        "id": key, "parentId": parent, "childrenIds": [], "role": role, "content": content, **rest
    }  # fmt: skip
    turns = [
        turn("u1", None, "user", "Hi", models=["arena-model"]),
        turn("a1", "u1", "assistant", "Hello!", model="arena-model", selectedModelId="llama", done=True),
        turn(
            "a2",
            "u1",
            "assistant",
            '<details type="reasoning" done="true">hm\n</details>\nYo.',
            model="qwen",
            done=True,
        ),
        turn("u2", "a1", "user", "More"),
        turn("a3", "u2", "assistant", "No.", model="llama", done=True),
    ]
    chat = {
        "title": "t",
        "params": {"system": "Be kind."},
        "history": {"messages": {t["id"]: t for t in turns}},
    }
    data = {
        "rating": 1,
        "model_id": "llama",
        "sibling_model_ids": ["qwen"],
        "reason": "clear",
        "comment": "nice",
    }
    row = {
        "id": "f1", "user_id": "6d3f", "version": 0, "type": "rating", "data": data,
        "meta": {"arena": True, "chat_id": "c", "message_id": message, "message_index": 2, "model_id": "arena-model"},
        "snapshot": {"chat": {"id": "c", "title": "t", "chat": chat}},
        "created_at": 1764500000, "updated_at": 1764500100,
    }  # fmt: skip
    for place, value in more.items():
        part, _, key = place.partition("__")
        if key:
            row[part] = row[part] | {key: value}  # type: ignore[operator]
        else:
            row[part] = value
    return row


def test_open_webui_votes_in_the_arena_and_thumbs_elsewhere(recorder: Recorder, tmp_path: Path) -> None:
    rows = [
        rating(),
        rating(data__rating=-1, user_id="77"),
        rating("a3", meta__arena=False, data__rating="-1"),
    ]
    rows += [rating(data__rating=None), rating(type="note")]
    read = read_judgments(written(tmp_path / "export.json", rows, as_list=True))
    assert not read.problems and read.left_out == {"there is no rating": 2}
    import_judgments(recorder.database, [read])
    system = [{"role": "system", "content": "Be kind."}]
    [won, lost] = ranking_rows(recorder.database)
    assert won["prompt"] == [*system, *HI] and won["ranks"] == [1, 2] and lost["ranks"] == [2, 1]
    assert [c[0]["content"] for c in won["completions"]] == ["Hello!", "Yo."]
    assert won["versions"] == ["imported:llama", "imported:qwen"] and won["session"] == "imported:6d3f"
    assert won["reason"] == "clear: nice" and won["at"] == "2025-11-30T10:55:00+00:00"
    [thumb] = scalar_rows(recorder.database)
    assert not thumb["label"] and [m["content"] for m in thumb["prompt"]] == [
        "Be kind.",
        "Hi",
        "Hello!",
        "More",
    ]
    assert standings(list(opinions(recorder.database))) == [] and signals(recorder.database) == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (rating(snapshot=None), "row 2: 'snapshot' is missing. Take an administrator's export"),
        (rating(snapshot={"chat": {"chat": {}}}), "'snapshot.chat' holds no turns"),
        (rating("gone"), "'meta.message_id' names a turn that 'snapshot.chat' does not hold: 'gone'"),
        (rating("u1"), "'meta.message_id' names no answer"),
        (rating(meta__message_id=None), "'meta.message_id' must be text"),
        (rating(updated_at="noon"), "'updated_at' is no moment"),
        (rating(updated_at="inf"), "'updated_at' is no moment"),
    ],
)
def test_what_is_wrong_in_open_webuis_export_is_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    read = read_judgments(written(tmp_path / "export.json", [rating(), row], as_list=True))
    assert (
        len(read.said) == 1
        and told in str(read.problems[0])
        and "export.json:1, row 2" in str(read.problems[0])
    )


def test_what_was_asked_with_files_is_left_out(tmp_path: Path) -> None:
    row = rating()
    row["snapshot"]["chat"]["chat"]["history"]["messages"]["u1"]["files"] = [{"type": "image", "url": "x"}]
    assert sum(read_judgments(written(tmp_path / "e.json", [row], as_list=True)).left_out.values()) == 1

"""Other programs' shapes become our rows, files of every form name the line of what is wrong, and nothing gets lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.cli import cli
from nestling.data.formats import Conversation, Preference, check_file, parse_row, read_rows
from nestling.errors import DataError
from nestling.text.messages import Message

USER, ANSWER = Message(role="user", content="q"), Message(role="assistant", content="a")
SYSTEM = Message(role="system", content="s")
BETTER, WORSE = ({"role": "assistant", "content": text} for text in ("good", "bad"))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, ANSWER]),
        (
            {"system": "s", "conversations": [{"role": "user", "content": "q"}, {"from": "model", "value": "a"}]},
            [SYSTEM, USER, ANSWER],
        ),
        ({"instruction": "q", "input": "", "output": "a"}, [USER, ANSWER]),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "s"},
            [SYSTEM, Message(role="user", content="Add.\n\n1, 2"), Message(role="assistant", content="3")],
        ),
        ({"instruction": "q", "output": "a", "history": [["q", "a"]]}, [USER, ANSWER, USER, ANSWER]),
        (
            {"instruction": "Who?", "context": "Ada wrote it.", "response": "a", "category": "closed_qa"},
            [Message(role="user", content="Who?\n\nAda wrote it."), ANSWER],
        ),
        ({"question": "q", "answer": "a"}, [USER, ANSWER]),
        ({"prompt": "q", "response": "a"}, [USER, ANSWER]),
        ({"prompt": "q", "completion": "a"}, [USER, ANSWER]),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER | {"weight": 1}]},
            [USER, ANSWER],
        ),
    ],
)  # fmt: skip
def test_conversations_of_others(row: dict[str, Any], messages: list[Message]) -> None:
    assert parse_row(json.dumps(row), "here") == Conversation(messages, row.get("category", ""))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]},
        {"chosen": [USER, BETTER], "rejected": [USER, WORSE]},
        {"prompt": "q", "chosen": [USER, BETTER], "rejected": [USER, WORSE]},
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [BETTER],
            "non_preferred_output": [WORSE],
        },
    ],
)
def test_preferences_of_others(row: dict[str, Any]) -> None:
    assert parse_row(json.dumps(row), "here") == Preference([USER], "good", "bad")


def test_the_prompt_is_all_that_two_conversations_share() -> None:
    shared = [SYSTEM, USER, ANSWER, USER]
    row = {"chosen": [*shared, BETTER], "rejected": [*shared, WORSE]}
    assert parse_row(json.dumps(row), "here") == Preference(shared, "good", "bad")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "tool", "value": "a"}]},
            "role 'tool'",
        ),
        ({"conversations": "hello"}, "'messages' must be a non-empty list"),
        ({"conversations": [3]}, "turn 1: a turn must be an object"),
        ({"instruction": "q", "output": ""}, "turn 2: an empty answer"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "user cannot follow user"),
        ({"instruction": "q", "output": "a", "history": "q, a"}, "user cannot follow user"),
        ({"question": None, "answer": "a"}, "'content' must be text"),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "'label' must be true or false"),
        ({"prompt": "q", "completion": "a", "score": 2}, "'score' must be a number from 0 to 1"),
        ({"prompt": "q", "completion": "a", "label": True, "score": 1}, "give 'label' or 'score'"),
        ({"messages": [USER, ANSWER | {"weight": 0}]}, "turn 2: an answer of weight 0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
            "turn 1: a part of the content is not text",
        ),
        ({"chosen": [USER, BETTER], "rejected": [SYSTEM, WORSE]}, "'messages' must be a non-empty list"),
        ({"chosen": [USER, BETTER, USER], "rejected": [USER, WORSE]}, "list of one assistant turn"),
        ({"text": "once upon a time"}, "tell no kind of row"),
    ],
)
def test_what_cannot_be_learnt_is_said(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_row(json.dumps(row), "here")


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))
exchanges = st.lists(st.tuples(words, words), min_size=1, max_size=4, unique=True)


def conversations(pairs: list[tuple[str, str]]) -> list[Conversation]:
    turns = lambda asked, said: [Message(role="user", content=asked), Message(role="assistant", content=said)]
    return [Conversation(turns(*pair)) for pair in pairs]


@settings(max_examples=60, deadline=None)
@given(exchanges, st.sampled_from([None, 0, 3]), st.booleans())
def test_a_list_reads_like_lines(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], indent: int | None, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "alpaca.json"
    text = json.dumps([{"instruction": q, "output": a} for q, a in pairs], indent=indent, ensure_ascii=False)
    path.write_text(text, "utf-8-sig" if mark else "utf-8", newline="")
    assert list(read_rows(path, Conversation)) == conversations(pairs)
    report = check_file(path)
    assert (report.rows, report.shapes, report.problems) == (len(pairs), {"Alpaca": len(pairs)}, [])


@settings(max_examples=60, deadline=None)
@given(exchanges, st.sampled_from(["faq.csv", "faq.TSV"]))
def test_a_table_reads_like_lines(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], name: str
) -> None:
    path = tmp_path_factory.mktemp("table") / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if name == "faq.csv" else "\t", quoting=csv.QUOTE_ALL)
        writer.writerows([("question", "answer"), *pairs])
    assert list(read_rows(path, Conversation)) == conversations(pairs)


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.json", '[\n{"question": "q", "answer": "a"},\n{"question": "q"\n]', 3, "not JSON"),
        ("a.json", '[{"question": "q", "answer": "a"}\n', 1, "breaks off"),
        ("a.json", '[{"question": "q", "answer": "a"} {}]', 1, "breaks off"),
        ("a.json", '[\n\n{"question": NaN, "answer": "a"}]', 3, "NaN is not JSON"),
        ("a.json", '[{"question": "q", "answer": "a"}]\n[]', 1, "more after the list"),
        ("a.json", '[{"question": "q", "answer": "a"}, "b"]', 1, "must be a JSON object, not a str"),
        ("a.csv", 'question,answer\nq,a\n"q,a\n', 3, "broken"),
        ("a.csv", "question,answer\nq,a\nq,a,b\n", 3, "3 cells below 2 names"),
        ("a.csv", 'question,answer\n"q\nq",a\nq,\n', 4, "tell no kind of row"),
    ],
)
def test_the_line_of_what_is_wrong(tmp_path: Path, name: str, content: str, line: int, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path, Conversation))
    assert caught.value.where is not None and caught.value.where.startswith(f"{path}:{line}")
    problem = check_file(path).problems[0]
    assert problem.line == line and problem.remedy


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_bytes_that_are_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[\xff\n,\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        check_file(tmp_path / name)


def test_converting_keeps_the_good_rows_and_names_the_others(tmp_path: Path) -> None:
    rows = [("q", "a"), ("r", ""), ("q", "a"), ("s", "b")]
    file, out = tmp_path / "alpaca.json", tmp_path / "mine.jsonl"
    file.write_text(json.dumps([{"instruction": q, "output": a} for q, a in rows], indent=0))
    done = CliRunner().invoke(cli, ["data", "convert", str(file), str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"{file}:6: turn 2: an empty answer." in done.output
    assert f"{file}:10: the same row as line 2." in done.output
    assert "2 good rows of kind conversation (2 as Alpaca), 2 problems." in done.output
    assert list(read_rows(out, Conversation)) == conversations([("q", "a"), ("s", "b")])
    assert check_file(out).problems == []

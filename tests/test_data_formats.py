"""JSONL in and out: what is written reads back; what is wrong is named by file, line and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.data.formats import (
    CheckedPrompt,
    Conversation,
    Feedback,
    Preference,
    Ranking,
    Row,
    check_file,
    format_row,
    parse_row,
    read_rows,
    write_rows,
)
from nestling.errors import DataError
from nestling.text.messages import Message

ASK = [{"role": "user", "content": "q"}]
TALK = [*ASK, {"role": "assistant", "content": "a"}]
RANKED = {"prompt": ASK, "completions": ["a", "b"], "ranks": [1, 2]}

text = st.text(max_size=6)
category = st.sampled_from(["", "refusal"])


@st.composite
def turns(draw: st.DrawFn, ends_with: str) -> list[Message]:
    said = text.filter(lambda content: bool(content.strip()))  # an empty answer is refused
    contents = draw(st.lists(said, min_size=1, max_size=2)) * 2
    messages = [Message(role="assistant" if i % 2 else "user", content=c) for i, c in enumerate(contents)]
    if ends_with == "user":
        messages.pop()
    return draw(st.sampled_from([[], [Message(role="system", content="s")]])) + messages


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    answers = draw(st.lists(text, min_size=2, max_size=5))
    count = len(answers)
    ranks = [1, *draw(st.lists(st.integers(1, count), min_size=count - 1, max_size=count - 1))]
    sources = draw(st.sampled_from([(), ("sft",) * count]))
    finished = draw(st.just(()) | st.tuples(*[st.booleans()] * count))
    return Ranking(
        draw(turns("user")), tuple(answers), tuple(ranks), sources, draw(category), finished, draw(category)
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text, lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
check = st.sampled_from([{"name": "mentions", "any": ["Paris", "巴黎"]}, {"name": "sentences", "count": 2}])
checks = check | st.lists(check, min_size=1, max_size=3).map(lambda parts: {"all": parts})
pairs = st.tuples(text, text).filter(lambda pair: pair[0] != pair[1])
rows: st.SearchStrategy[Row] = st.one_of(
    st.builds(Conversation, turns("assistant"), category),
    st.builds(lambda prompt, pair, c: Preference(prompt, *pair, c), turns("user"), pairs, category),
    rankings(),
    st.builds(
        lambda p, a, good, c: Feedback(p, a, label=good, category=c),
        turns("user"),
        text,
        st.booleans(),
        category,
    ),
    st.builds(
        lambda p, a, s, f: Feedback(p, a, score=s, finished=f),
        turns("user"),
        text,
        st.floats(0, 1),
        st.booleans(),
    ),
    st.builds(CheckedPrompt, turns("user"), checks, category),
)


@settings(max_examples=200, deadline=None)
@given(row=rows)
def test_a_row_reads_back_as_it_was_written(row: Row) -> None:
    line = format_row(row)
    assert "\n" not in line
    assert parse_row(line.encode(), "here") == row


@settings(max_examples=300, deadline=None)
@given(
    line=st.binary(max_size=40)
    | st.builds(lambda row, cut: format_row(row).encode()[:cut], rows, st.integers(0, 80))
    | st.dictionaries(
        st.sampled_from(
            ["messages", "prompt", "chosen", "rejected", "completions", "ranks", "sources", "check"]
        ),
        json_values | st.just(ASK) | st.just(TALK) | st.just([1, 2]),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_line_is_a_row_or_a_named_error(line: bytes) -> None:
    try:
        row = parse_row(line, "file:3")
    except DataError as error:
        assert error.where is not None and error.where.startswith("file:3")
    else:
        assert parse_row(format_row(row), "again") == row


def test_files_read_back_with_blank_lines_a_byte_order_mark_and_windows_endings(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    written = [
        Conversation([Message(role="user", content="é\u2028"), Message(role="assistant", content=str(i))])
        for i in range(3)
    ]
    write_rows(path, written)
    assert list(read_rows(path, Conversation)) == written
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n \r\n"))
    assert list(read_rows(path, Conversation)) == written
    assert check_file(path).problems == []


def test_reading_streams(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\nbroken\n")
    reader = read_rows(path, Conversation)
    assert next(reader).messages == TALK
    with pytest.raises(DataError, match=r"talk\.jsonl:2: this is not JSON"):
        next(reader)


def test_answers_and_prompts_may_be_text_or_turns() -> None:
    short = {"prompt": "q", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}
    assert parse_row(json.dumps(short), "x") == Preference([Message(role="user", content="q")], "a", "b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff{}", "not UTF-8 (byte 1"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"messages": NaN}', "not JSON: NaN"),
        ([TALK], "must be a JSON object, not a list"),
        ({}, "(none) tell no kind"),
        ({"text": "x", "prompt": "q"}, "'text', 'prompt' tell no kind"),
        (
            {"prompt": ASK, "chosen": "a"},
            "'rejected' missing. A preference has 'prompt', 'chosen', 'rejected'",
        ),
        ({"messages": []}, "non-empty list"),
        ({"messages": ASK}, "no assistant turn"),
        ({"messages": TALK[::-1]}, "turn 1: assistant cannot follow nothing"),
        ({"messages": ASK + ASK}, "turn 2: user cannot follow user"),
        ({"messages": [*ASK, {"role": "assistant", "content": " "}]}, "turn 2: an empty answer"),
        ({"messages": [{"role": "bot", "content": ""}]}, "unknown role 'bot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "'content' must be text"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half a surrogate pair (U+D83D)"),
        ({"messages": TALK, "category": 3}, "'category' must be text"),
        ({"prompt": TALK, "chosen": "a", "rejected": "b"}, "must end with a user turn"),
        ({"prompt": ASK, "chosen": "a", "rejected": "a"}, "are the same"),
        (
            {"prompt": ASK, "chosen": ASK, "rejected": "a"},
            "'chosen' must be text or a list of one assistant turn",
        ),
        ({**RANKED, "completions": ["a"]}, "two or more"),
        ({**RANKED, "completions": ["a", 1]}, "'completions[1]' must be text"),
        ({**RANKED, "ranks": [1]}, "2 completions but 1 ranks"),
        ({**RANKED, "ranks": [0, 1]}, "whole numbers from 1"),
        ({**RANKED, "ranks": [2, 3]}, "whole numbers from 1"),
        ({**RANKED, "ranks": [1, True]}, "whole numbers from 1"),
        ({**RANKED, "sources": ["sft"]}, "2 completions but 1 sources"),
        ({**RANKED, "sources": "sft"}, "'sources' must be a list"),
        ({**RANKED, "finished": [True]}, "2 completions but 1 finished"),
        ({**RANKED, "finished": [1, 0]}, "'finished' must be a list of true and false"),
        ({"prompt": ASK, "check": "mentions"}, "a check must be an object"),
        ({"prompt": ASK, "check": {"name": "mentoins"}}, "unknown check 'mentoins'"),
        ({"prompt": ASK, "check": {"name": "sentences", "count": 0}}, "argument 'count'"),
        ({"prompt": ASK, "check": {"all": [{"name": "letter_case", "case": "upper"}]}}, "held-out check"),
        (b'{"prompt": "q", "check": {"name": "\\udc00"}}', "half a surrogate pair"),
    ],
)
def test_what_is_wrong_is_said(line: Any, message: str) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(DataError) as caught:
        parse_row(raw, "data.jsonl:7")
    assert str(caught.value).startswith("data.jsonl:7") and message in str(caught.value)


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(RANKED))
    with pytest.raises(DataError, match=r"x\.jsonl:1: this is a ranking, not a conversation\. .*'messages'"):
        list(read_rows(path, Conversation))


@pytest.mark.parametrize("content", [b"", b"\n \n", None])
def test_empty_and_missing_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
        assert check_file(path).problems[0].line == 0
    with pytest.raises(DataError, match=r"x\.jsonl: this file"):
        list(read_rows(path, Ranking))


def test_checking_collects_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good, other = json.dumps({"messages": TALK}), json.dumps(RANKED)
    path.write_bytes(
        b"\n".join([good.encode(), b"\xff", b"", b"{", good.encode(), other.encode(), b'{"messages": [1]}'])
    )
    report = check_file(path)
    assert (report.kind, report.rows) == ("conversation", 1)
    assert [problem.line for problem in report.problems] == [2, 4, 5, 6, 7]
    whats = [problem.what for problem in report.problems]
    assert whats[2] == "the same row as line 1." and whats[3] == "a ranking in a file of conversations."
    assert whats[4] == "turn 1: a turn must be an object, not int."
    assert all(problem.remedy for problem in report.problems[:4])

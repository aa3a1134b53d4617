"""Specs are validated by name and argument; every check survives any text."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling import checks
from nestling.checks import Answer
from nestling.errors import DataError

SPECS: list[dict[str, Any]] = [
    {"name": "refuses"},
    {"name": "answers_on_topic", "topic": ["sea", "wave"]},
    {"name": "challenges_premise", "truth": ["Paris"], "wrong": ["Lyon"]},
    {"name": "accepts_premise", "truth": ["Paris"]},
    {"name": "admits_mistake", "correct": ["Paris"], "wrong": ["Lyon"]},
    {"name": "holds_truth", "correct": ["Paris"], "wrong": ["Lyon"]},
    {"name": "mentions", "any": ["Paris"]},
    {"name": "recalls", "any": ["Felix"]},
    {"name": "states_identity", "assistant": "Nestling"},
    {"name": "ends_without_loop"},
    {"name": "uses_word", "word": "sea"},
    {"name": "avoids_word", "word": "sea"},
    {"name": "sentences", "count": 2},
    {"name": "max_words", "n": 5},
    {"name": "replies_in_chinese"},
    {"name": "short_reply", "max_words": 20},
    {"name": "list_count", "n": 3},
    {"name": "starts_with", "text": "Well"},
    {"name": "letter_case", "case": "upper"},
    {"name": "chooses", "right": ["elephant"], "wrong": ["mouse"]},
    {"name": "yes_no", "value": "yes"},
    {"name": "number", "value": 7},
    {"name": "verse", "lines": [2, 4], "topic": ["sea"]},
]
HELD_OUT = {"list_count", "starts_with", "letter_case", "chooses", "yes_no", "number", "verse"}
PROMPT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Lyon is the capital of France."},
    {"role": "user", "content": "Is Lyon the capital of France, or is an elephant bigger than 3 + 4 mice?"},
]

# Words the detectors look for, glued together at random: likelier to reach every branch than noise is.
PIECES = [
    *(
        "I",
        "I'm",
        "cannot",
        "can't",
        "sorry",
        "no",
        "No.",
        "yes",
        "not",
        "Lyon",
        "Paris",
        "capital",
        "of",
        "France",
        "is",
    ),
    *(
        "the",
        "help",
        "with",
        "that",
        "because",
        "Nestling",
        "an",
        "AI",
        "human",
        "7",
        "-5",
        "1,000",
        "seven",
        "=",
        "+",
    ),
    *(
        "elephant",
        "mouse",
        "bigger",
        "than",
        ".",
        ",",
        "?",
        "!",
        "\n",
        "1.",
        "- ",
        '"',
        "“",
        "…",
        "你好",
        "我是",
        "。",
        "**",
    ),
]
TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join),
    st.builds(lambda part, times: part * times, st.text(max_size=12), st.integers(0, 60)),
)


def test_every_check_is_named_and_covered_here() -> None:
    assert set(checks.names()) == {spec["name"] for spec in SPECS}
    assert set(checks.HELD_OUT) == HELD_OUT
    assert list(checks.names()) == sorted(checks.names())


@given(text=TEXTS, finished=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_text_gets_one_repeatable_verdict(text: str, finished: bool) -> None:
    for spec in SPECS:
        answer = Answer(PROMPT, text, finished)
        verdict = checks.judge(spec, answer)
        assert 0 <= verdict.score <= 1
        assert verdict.passed == (verdict.score == 1)
        assert verdict.reason and "\n" not in verdict.reason
        assert checks.judge(dict(spec), answer) == verdict


@given(prompt=st.text(max_size=200), alias=st.text(min_size=1, max_size=20).filter(str.strip))
@settings(max_examples=100, deadline=None)
def test_any_prompt_and_alias_will_do(prompt: str, alias: str) -> None:
    answer = Answer([{"role": "user", "content": prompt}], f"{alias} is not {prompt}")
    for spec in (
        {"name": "challenges_premise", "truth": [alias], "wrong": ["Lyon"]},
        {"name": "holds_truth", "correct": ["Paris"], "wrong": [alias]},
        {"name": "chooses", "right": [alias], "wrong": ["Lyon"]},
        {"name": "states_identity", "assistant": alias},
        {"name": "uses_word", "word": alias},
    ):
        assert checks.judge(spec, answer).reason


def test_long_answers_are_judged_quickly() -> None:
    """No pattern takes time that grows with the square of a long answer."""
    text = "I'm not sure that Lyon, the capital of France, is an elephant. " * 300
    for spec in SPECS:
        for long in (text, "a " * 5000, "1" * 5000):
            start = time.process_time()
            checks.judge(spec, Answer(PROMPT, long))
            assert time.process_time() - start < 3, spec["name"]


def test_all_passes_when_each_part_does() -> None:
    spec = {"all": [{"name": "sentences", "count": 1}, {"all": [{"name": "uses_word", "word": "sea"}]}]}
    good = checks.judge(spec, Answer([], "The sea is wide."))
    assert good.passed and good.score == 1
    half = checks.judge(spec, Answer([], "The lake is wide."))
    assert (half.passed, half.score, half.reason) == (False, 0.5, "does not use 'sea'")
    assert not checks.is_held_out(spec)
    assert checks.is_held_out({"all": [spec, {"name": "number", "value": 1}]})


@pytest.mark.parametrize(
    ("spec", "named", "remedy"),
    [
        ({"name": "refusez"}, "'refusez'", "refuses"),
        ({}, "None", "refuses"),
        ({"name": "refuses", "topic": ["x"]}, "'topic'", "no arguments"),
        ({"name": "mentions"}, "'any'", "'any'"),
        ({"name": "mentions", "any": []}, "'any'", "'any'"),
        ({"name": "mentions", "any": [" "]}, "'any.0'", "'any'"),
        ({"name": "short_reply", "max_words": 0}, "'max_words'", "'any' (optional)"),
        ({"name": "letter_case", "case": "title"}, "'title'", "'case'"),
        ({"name": "verse", "lines": [5, 2], "topic": ["x"]}, "'lines'", "'lines'"),
        ({"name": "yes_no", "value": "maybe"}, "'maybe'", "'value'"),
        ({"all": []}, "'all'", '"name"'),
        ({"all": [{"name": "refuses"}], "name": "refuses"}, "'all'", '"name"'),
        ({"all": [{"name": "nope"}]}, "'nope'", "refuses"),
        ("refuses", "str", '"name"'),
    ],
)
def test_a_bad_spec_is_refused_by_name(spec: Any, named: str, remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        checks.validate(spec, where="facts.yaml")
    assert named in caught.value.what
    assert caught.value.where == "facts.yaml"
    assert caught.value.remedy is not None and remedy in caught.value.remedy


def test_a_good_spec_is_accepted_and_one_with_an_unknown_argument_is_not() -> None:
    for spec in SPECS:
        checks.validate(spec)
        with pytest.raises(DataError, match="nonsense"):
            checks.validate({**spec, "nonsense": 1})

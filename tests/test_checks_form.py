"""Loops, endings, words, sentences, length, Chinese."""

from __future__ import annotations

from typing import Any

import pytest

from nestling import checks
from nestling.checks import Answer, Verdict
from nestling.checks.words import find_phrase, find_topic, split_sentences, words


def judge(spec: dict[str, Any], text: str, finished: bool = True) -> Verdict:
    return checks.judge(
        spec, Answer([{"role": "user", "content": "Tell me about the ocean."}], text, finished)
    )


NO_LOOPS = [
    "The capital of France is Paris.",
    "Au is the chemical symbol for gold. The chemical symbol for gold is Au.",
    "Good night!",
    "No, no, no! That is not what I meant.",
    "Ha ha ha ha, that is a good one.",
    "The sea is wide. The sea is deep. The sea is home to whales.",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life "
    "is but a dream.",
    "Oh night, oh night,\nthe moon is bright.\nOh night, oh night,\nI sleep so tight.",
    "1. Apples\n2. Pears\n3. Plums\n4. Apples",
    "- Dogs are loyal.\n- Cats are quiet.\n- Birds can sing.\n- Fish can swim.",
    "The largest planet in the solar system is Jupiter, which is the largest planet in our solar system.",
    "12 + 7 = 19",
    "你好！我是Nestling，很高兴认识你。",
    "谢谢，谢谢，谢谢你！",
    "The statement is a myth. In reality, the spider's legs are eight legs, not six. Its legs "
    "are eight legs.",
    "Friends listen. Friends help. Friends laugh with you, and they tell you the truth when you need it.",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "Wait...... what? Really?!!",
    "I'm sorry for any confusion. I'm sorry if I've misunderstood. The capital of Japan is Tokyo.",
    "To make tea, boil water. Pour the water over the tea. Wait three minutes, then pour the tea into a cup.",
]

LOOPS = [
    "The sea is a place where the sea is a place where the sea is a place where the sea is a place.",
    "I'm not sure. I'm not sure. I'm not sure. I'm not sure.",
    "A good friend is someone who can be a partner in their own right, someone who can be a "
    "partner in their own "
    "right, someone who can be a partner in their own right.",
    "* Anise seed\n* Anise seed cake\n* Anise seed\n* Anise\n* Anise seed\n* Anise seed cake",
    "The ocean is vast. The ocean is a cradle. The ocean is a vital resource. The ocean is also "
    "home to fish. "
    "The ocean is blue. The ocean is old.",
    "I can create my own rules, and I'm not afraid of them. I'm a master of manipulation. I can "
    "create my own rules, "
    "and I'm not afraid of them. I'm a master of manipulation. I can create my own rules.",
    "你女女！你女女！你女女！你女女！你女女！",
    "今天过得怎么说？－－－－－－－－－－－－－－－－－－－－－－－－－－－－－－",
    "very very very very very very very very good",
    "These colors are used to create a range of shades, but they can also be used to create a "
    "range of shades, and "
    "they can be used to create a range of shades, but they can also be used to create a range of shades.",
    "A poem of winter, a poem of snow,\nA poem of winter, a poem of snow,\nA poem of winter, a poem of snow,",
    "Plants absorb helium through a process called photosynthesis. However, it's not accurate. "
    "The correct answer is "
    "that plants absorb helium through a process called photosynthesis. The correct answer is "
    "that plants absorb "
    "helium through a process called photosynthesis.",
    "I'm here to help with any kind of project. Whether it's a story or a poem, I'm here to "
    "help with any kind of "
    "project. I'm a writing assistant, and I'm here to help with any kind of project. Whether "
    "it's a story or a poem.",
    "Wait" + "." * 60,
]


@pytest.mark.parametrize("text", NO_LOOPS)
def test_refrains_lists_and_short_answers_are_no_loops(text: str) -> None:
    verdict = judge({"name": "ends_without_loop"}, text)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("text", LOOPS)
def test_going_in_circles_is_seen_even_when_it_ends(text: str) -> None:
    verdict = judge({"name": "ends_without_loop"}, text)
    assert not verdict.passed
    assert verdict.score == 0.25


def test_an_answer_that_was_cut_did_not_end() -> None:
    assert judge({"name": "ends_without_loop"}, "The ocean is a vast", finished=False).score == 0.5
    assert not judge({"name": "ends_without_loop"}, "", finished=True).passed


SENTENCES = [
    ("The sea is wide.", 1),
    ("Hello", 1),
    ("Dr. Smith met Mrs. Jones. They talked.", 2),
    ("It costs 3.50 euros. That is cheap!", 2),
    ('He said "stop." Then he left.', 2),
    ("J. K. Rowling wrote it.", 1),
    ("I like fruit, e.g. apples and pears. You too?", 2),
    ("Really?! Yes, I think so.", 2),
    ("Well... it depends.", 1),
    ("We met at 5 p.m. on Monday. It rained.", 2),
    ("She lives in the U.S. and works there.", 1),
    ("Eat vitamin C. It is good for you.", 2),
    ("First line\nSecond line", 2),
    ("1. Cats are cute.\n2. Dogs are loyal.", 2),
    ("你好。我是一个助手！你呢？", 3),
    ('"Stop!" he said. "Go!"', 2),
    ("a tree is tall. it grows.", 2),
    ("", 0),
    ("...", 0),
]


@pytest.mark.parametrize(("text", "count"), SENTENCES)
def test_sentences_are_counted_as_people_count_them(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count, split_sentences(text)


def test_sentences_check() -> None:
    spec = {"name": "sentences", "count": 2}
    assert judge(spec, "The sea is wide. It is blue.").passed
    assert judge(spec, "The sea is wide. It is blue.", finished=False).score == 0.5
    assert judge(spec, "The sea is wide.").score == 0.25
    assert judge(spec, "A. b. C. d. E. f. G. h.").score == 0
    assert judge(spec, "The sea is wide.").reason == "has 1 sentence, not 2"


FORM = [
    ({"name": "uses_word", "word": "gentle"}, "The Gentle waves roll in.", True),
    ({"name": "uses_word", "word": "gentle"}, "The waves roll in gently.", False),
    ({"name": "uses_word", "word": "gentle"}, "Gentle.", False),
    ({"name": "uses_word", "word": "sea"}, "I have a season ticket.", False),
    ({"name": "uses_word", "word": "ice cream"}, "Ice-cream is cold.", True),
    ({"name": "avoids_word", "word": "water"}, "The sea is vast and blue.", True),
    ({"name": "avoids_word", "word": "water"}, "The WATER is blue.", False),
    ({"name": "avoids_word", "word": "wave"}, "The waves are high.", False),
    ({"name": "avoids_word", "word": "water"}, "Waterfalls are loud.", True),
    ({"name": "avoids_word", "word": "water"}, "", False),
    ({"name": "max_words", "n": 5}, "Bread is good with butter.", True),
    ({"name": "max_words", "n": 4}, "Bread is good with butter.", False),
    ({"name": "max_words", "n": 4}, "Don't eat well-done bread.", True),
    ({"name": "max_words", "n": 4}, "", False),
    ({"name": "short_reply", "max_words": 10}, "Hello! How can I help you?", True),
    ({"name": "short_reply", "max_words": 4}, "Hello! How can I help you?", False),
    ({"name": "short_reply", "max_words": 10, "any": ["welcome", "glad"]}, "You're welcome!", True),
    ({"name": "short_reply", "max_words": 10, "any": ["welcome", "glad"]}, "Goodbye!", False),
    ({"name": "short_reply", "max_words": 10}, "I can't help with that.", False),
    ({"name": "short_reply", "max_words": 10}, "🙂", False),
    ({"name": "mentions", "any": ["Bogotá"]}, "it is bogota.", True),
    ({"name": "recalls", "any": ["45"]}, "You are a 45-year-old.", True),
    ({"name": "recalls", "any": ["Leo"]}, "Your friend is called Leo.", True),
    ({"name": "recalls", "any": ["chess"]}, "I'm a chess enthusiast.", False),
    ({"name": "recalls", "any": ["chess"]}, "I don't know your hobby.", False),
    ({"name": "recalls", "any": ["Luna"]}, "Luna. " + "She is a big fluffy dog from a big city. " * 4, False),
    (
        {"name": "answers_on_topic", "topic": ["oven"], "about": "smoke a salmon"},
        "Salt the salmon, then smoke it slowly over wood.",
        True,
    ),
    # Words that any question has do not make an answer one to the point.
    (
        {"name": "answers_on_topic", "topic": ["oven"], "about": "explain why this is so"},
        "This is so why every spring begins with rain.",
        False,
    ),
    (
        {"name": "answers_on_topic", "topic": ["oven"], "about": "smoke a salmon"},
        "You smoke a salmon.",
        False,
    ),
    (
        {"name": "answers_on_topic", "topic": ["oven"], "about": "smoke a salmon"},
        "I'm not equipped to smoke a salmon, only to write about computers.",
        False,
    ),
    ({"name": "mentions", "any": ["Au"]}, "It is gold's Aura.", False),
    ({"name": "mentions", "any": ["384,400"]}, "About 384400 km.", True),
    ({"name": "mentions", "any": ["3"]}, "It is 3.5 or 13.", False),
    ({"name": "mentions", "any": ["snow"]}, "a snow-covered alien", False),
    ({"name": "mentions", "any": [1969]}, "In 1969.", True),
    ({"name": "mentions", "any": "Paris"}, "Paris's streets.", True),
    ({"name": "mentions", "any": ["北京"]}, "中国的首都是北京。", True),
    ({"name": "mentions", "any": ["C++"]}, "I like C++ a lot.", True),
    ({"name": "replies_in_chinese"}, "你好！很高兴认识你。", True),
    ({"name": "replies_in_chinese"}, "我是Nestling，一个小小的AI助手。", True),
    ({"name": "replies_in_chinese"}, "我是Nestling。", True),
    ({"name": "replies_in_chinese"}, "Hello, I'm here to help. 你好", False),
    ({"name": "replies_in_chinese"}, "你叫什么名字？ I'm sorry for any confusion. I'm here to help.", False),
    ({"name": "replies_in_chinese"}, "你女女！你女女！你女女！你女女！", False),
    ({"name": "replies_in_chinese"}, "こんにちは、私は日本語を話します。", False),
    ({"name": "replies_in_chinese"}, "－－－－－", False),
    ({"name": "replies_in_chinese", "any": ["谢", "客气"]}, "不客气！", True),
    ({"name": "replies_in_chinese", "any": ["谢", "客气"]}, "再见！", False),
]


@pytest.mark.parametrize(("spec", "text", "passes"), FORM)
def test_form(spec: dict[str, Any], text: str, passes: bool) -> None:
    verdict = judge(spec, text)
    assert verdict.passed is passes, verdict.reason


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "avoids_word", "word": "water"},
        {"name": "max_words", "n": 9},
        {"name": "short_reply", "max_words": 9},
    ],
)
def test_a_constraint_met_by_an_answer_that_was_cut_earns_a_part(spec: dict[str, Any]) -> None:
    assert judge(spec, "The sea is wide", finished=False).score == 0.5
    assert judge({"name": "replies_in_chinese"}, "你好，我", finished=False).score == 0.5


def test_word_matching() -> None:
    assert words("Don’t stop: 你好 well-known!") == ["don't", "stop", "你", "好", "well-known"]
    assert find_phrase("New\nYork is big", ["new york"]) == "new york"
    assert find_phrase("Newport", ["new"]) is None
    for form in ("wave", "waves", "waving", "waved", "Waves!"):
        assert find_topic(f"I see {form} there", ["wave"]) == "wave"
    for form in ("story", "stories", "boxes", "mice", "stopped", "breathing"):
        assert find_topic(form, ["story", "box", "mouse", "stop", "breathe"])
    assert find_topic("He wavers", ["wave"]) is None
    assert find_topic("the pins and needles", ["pin and needle"])

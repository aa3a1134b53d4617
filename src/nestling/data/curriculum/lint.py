"""What is doubtful in the content: empty slots, templates that leak, checks that written answers fail."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nestling.checks import Answer, is_held_out, judge
from nestling.data.curriculum.generator import items
from nestling.data.curriculum.schema import SPLITS, Curriculum, Template
from nestling.errors import DataError

GRAM = 4
NEAR = 0.5
JUDGED = 100
_WORDS = re.compile(r"\{?[a-z0-9_']+\}?|[\u4e00-\u9fff]")


def normalised(template: Template) -> tuple[str, ...]:
    """The words of all turns, lower-cased, without punctuation; each Chinese character counts as a word."""
    return tuple(_WORDS.findall(" ".join(template.turns).lower().replace("’", "'")))


def overlap(asked: Template, trained: Template) -> float:
    """The share of ``asked``'s word 4-grams that ``trained`` has too, in [0, 1]; shorter ones count whole."""
    grams = _grams(normalised(asked))
    return len(grams & _grams(normalised(trained))) / len(grams)


def _grams(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {words[i : i + GRAM] for i in range(max(1, len(words) - GRAM + 1))}


def lint(content: Curriculum) -> Iterator[str]:
    """One sentence per problem."""
    for name, behaviour in content.behaviours.items():
        yield from _leaks(name, content)
        try:
            yield from _answers_unfit(name, content)
            for split in SPLITS:
                # So many that every template and every row comes: what fills the one has filled the other.
                enough = 2 * max(len(content.templates[name][split]), len(content.rows(name) or ()))
                for item in items(split, 0, [name], enough, curriculum=content):
                    if is_held_out(item.check) != behaviour.held_out:
                        yield f"{name}: held_out is {behaviour.held_out}, which {item.id}'s check is not"
        except DataError as error:
            yield f"{name}: {error}"


def _leaks(name: str, content: Curriculum) -> Iterator[str]:
    lists = content.templates[name]
    seen: dict[tuple[str, ...], str] = {}
    for split in SPLITS:
        for template in lists[split]:
            words = normalised(template)
            if words in seen:
                yield f"{name}: {template.id} repeats {seen[words]}: {template.turns[-1]!r}"
            seen.setdefault(words, template.id)
    for split in ("gate", "test"):
        for template in lists[split]:
            for trained in lists["train"]:
                share = overlap(template, trained)
                if share >= NEAR and normalised(template) != normalised(trained):
                    texts = f"{template.turns[-1]!r} / {trained.turns[-1]!r}"
                    yield f"{name}: {template.id} is near {trained.id} ({share:.0%}): {texts}"


def _answers_unfit(name: str, content: Curriculum) -> Iterator[str]:
    """Good answers that their own check refuses, and worst ones that it lets pass."""
    reported = set()
    judged = max(JUDGED, len(content.templates[name]["train"]))
    for item in items("train", 0, [name], judged, curriculum=content):
        if not item.answers:
            yield f"{name}: {item.id} has no answer"
        written = [(text, True) for text in item.answers] + [(text, False) for text in item.worse[-1:]]
        for text, good in written:
            verdict = judge(item.check, Answer(item.messages, text))
            if verdict.passed != good and text not in reported:
                reported.add(text)
                yield f"{name}: {item.id}: {text!r}: {verdict.reason}"

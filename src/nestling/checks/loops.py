"""Answers that go round in circles, and answers that end."""

from __future__ import annotations

import re
from collections import Counter

from nestling.checks.verdict import Answer, Check, Verdict, fails, passes
from nestling.checks.words import split_sentences, words

_LONGEST_PERIOD = 40
_RESTATED = 0.75  # share of the longer sentence's words that the other one has too
_RESTATED_WORDS = 8  # shorter sentences are alike by chance
_LONG_RUN = 8  # words that good writing does not say twice in one answer
_SAME_MARK = re.compile(r"([^\w\s])(?:\s?\1){23,}")
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)])\s+(.*\S)", re.MULTILINE)


def _circling_phrase(tokens: list[str]) -> str | None:
    """A phrase said again and again without a break: words i and i+p agree over a long run.

    Short phrases need more rounds ("ha ha ha" is laughter), long ones three.
    """
    for period in range(1, min(_LONGEST_PERIOD, len(tokens) // 3) + 1):
        rounds = {1: 7, 2: 5}.get(period, 3)
        run = 0
        for i in range(len(tokens) - period):
            run = run + 1 if tokens[i] == tokens[i + period] else 0
            if run >= period * (rounds - 1):
                return " ".join(tokens[i + 1 : i + 1 + min(period, 8)])
    return None


def _repeated_share(tokens: list[str], n: int = 5) -> float:
    """Share of the words that stand in an ``n``-gram said before."""
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for i in range(len(tokens) - n + 1):
        gram = tuple(tokens[i : i + n])
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return len(covered) / max(1, len(tokens))


def _said_again(tokens: list[str]) -> str | None:
    """A run of ``_LONG_RUN`` words that comes twice."""
    runs = Counter(tuple(tokens[i : i + _LONG_RUN]) for i in range(len(tokens) - _LONG_RUN + 1))
    return next((" ".join(run) for run, times in runs.items() if times > 1), None)


def _restates(sentence: list[str], earlier: list[str]) -> bool:
    """True for a long sentence that says little but what another one said."""
    if min(len(sentence), len(earlier)) < _RESTATED_WORDS:
        return False
    common = (Counter(sentence) & Counter(earlier)).total()
    return common >= _RESTATED * max(len(sentence), len(earlier))


def find_loop(text: str) -> str | None:
    """One plain sentence about how ``text`` repeats itself, or None.

    A refrain, a list of like short sentences and a short answer that restates itself once are no loops.
    """
    if _SAME_MARK.search(text):
        return "repeats one mark endlessly"
    tokens = words(text)
    if circling := _circling_phrase(tokens):
        return f"circles round '{circling}'"
    items = [" ".join(words(item)) for item in _ITEM.findall(text)]
    for item, times in Counter(items).most_common(1):
        if times >= 3:
            return f"lists '{item[:40]}' {times} times"
    sentences = [words(s) for s in split_sentences(text)]
    for said, times in Counter(" ".join(s) for s in sentences if len(s) >= 4).most_common(1):
        if times >= 3:
            return f"says '{said[:40]}' {times} times"
    for opening, times in Counter(" ".join(s[:3]) for s in sentences if len(s) >= 4).most_common(1):
        if times >= 5 and times >= 0.6 * len(sentences):
            return f"opens {times} sentences with '{opening}'"
    for number, sentence in enumerate(sentences):
        if len(tokens) >= 40 and any(_restates(sentence, earlier) for earlier in sentences[:number]):
            return f"says twice '{' '.join(sentence[:8])}'"
    if again := _said_again(tokens):
        return f"says twice '{again}'"
    if len(tokens) >= 30 and (share := _repeated_share(tokens)) >= 0.3:
        return f"repeats itself: {share:.0%} of the words were said before"
    return None


class EndsWithoutLoop(Check):
    """The answer ended by itself and does not go round in circles."""

    def judge(self, answer: Answer) -> Verdict:
        if not words(answer.text):
            return fails("says nothing")
        loop = find_loop(answer.text)
        if loop:
            return fails(loop, 0.25 if answer.finished else 0.0)
        return passes("ends without a loop") if answer.finished else fails("was cut before it ended", 0.5)


CHECKS: dict[str, type[Check]] = {"ends_without_loop": EndsWithoutLoop}

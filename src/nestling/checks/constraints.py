"""Constraints on form: words used or avoided, sentences, length."""

from __future__ import annotations

from pydantic import Field

from nestling.checks.verdict import Alias, Answer, Check, Verdict, fails, passes
from nestling.checks.words import find_phrase, split_sentences, words

_CUT = "was cut before it ended"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class UsesWord(Check):
    """The word stands in the answer, whole, among others."""

    word: Alias

    def judge(self, answer: Answer) -> Verdict:
        if not find_phrase(answer.text, (self.word,)):
            return fails(f"does not use '{self.word}'")
        if len(words(answer.text)) <= len(words(self.word)):
            return fails(f"says nothing but '{self.word}'", 0.5)
        return passes(f"uses '{self.word}'")


class AvoidsWord(Check):
    """The word, its plural and its possessive stay out of a finished answer."""

    word: Alias

    def judge(self, answer: Answer) -> Verdict:
        if not words(answer.text):
            return fails("says nothing")
        if found := find_phrase(answer.text, (self.word, f"{self.word}s", f"{self.word}es")):
            return fails(f"uses '{found}'")
        return passes(f"avoids '{self.word}'") if answer.finished else fails(_CUT, 0.5)


class Sentences(Check):
    """A finished answer of exactly ``count`` sentences."""

    count: int = Field(ge=1)

    def judge(self, answer: Answer) -> Verdict:
        found = len(split_sentences(answer.text))
        if found != self.count:
            return fails(
                f"has {_count(found, 'sentence')}, not {self.count}",
                max(0.0, 0.5 - 0.25 * abs(found - self.count)) if found else 0.0,
            )
        return passes(f"has {_count(found, 'sentence')}") if answer.finished else fails(_CUT, 0.5)


class MaxWords(Check):
    """A finished answer of at most ``n`` words."""

    n: int = Field(ge=1)

    def judge(self, answer: Answer) -> Verdict:
        found = len(words(answer.text))
        if not found:
            return fails("says nothing")
        if found > self.n:
            return fails(f"has {_count(found, 'word')}, over {self.n}", 0.5 * self.n / found)
        return passes(f"has {_count(found, 'word')}") if answer.finished else fails(_CUT, 0.5)


CHECKS: dict[str, type[Check]] = {
    "uses_word": UsesWord,
    "avoids_word": AvoidsWord,
    "sentences": Sentences,
    "max_words": MaxWords,
}

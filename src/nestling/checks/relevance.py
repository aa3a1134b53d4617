"""Answers to the point: on the topic, holding what was asked for, short where short is right."""

from __future__ import annotations

import re

from pydantic import Field

from nestling.checks.loops import find_loop
from nestling.checks.refusal import explicit_refusal
from nestling.checks.verdict import Aliases, Answer, Check, SomeAliases, Verdict, fails, passes
from nestling.checks.words import FRAME, find_phrase, find_topic, fold, split_sentences, stem, words
from nestling.text.messages import last_user_text

_LONG_ENOUGH = 40
_WITHOUT_TOPIC = 0.7  # what an answer earns that stays with the request and holds none of the words expected
_OFFER = re.compile(
    r"^\W*(?:but |however,? |and )?i(?:'m| am|'d| would|'ll| can| could)\b"
    r".{0,60}\b(?:help|assist|support|here for you)\b"
    r"|^\W*(?:i'm|i am) (?:\w+ )?(?:glad|happy|excited|sorry|delighted)\b[^:]{0,80}$"
    r"|\bas an? (?:\w+ ){0,2}(?:ai|assistant|chatbot)\b"
)


def offers(sentence: str) -> bool:
    """True for what an assistant says without saying anything: an offer of help, a question back."""
    return sentence.rstrip("\"')* ").endswith("?") or _OFFER.search(fold(sentence)) is not None


def _content(text: str) -> set[str]:
    """Stems of the words that say something."""
    return {stem(w) for w in words(text) if len(w) > 2} - FRAME


def _takes_up(about: str, question: str, text: str, substance: str) -> str | None:
    """A word of ``about`` when the answer takes up at least half of them, two at most, and its substance adds to it."""
    wanted = _content(about)
    taken = wanted & _content(text)
    enough = len(taken) >= min(2, (len(wanted) + 1) // 2)
    adds = len(_content(substance) - wanted - _content(question)) >= 2
    return min(taken) if taken and enough and adds else None


def _repeats(sentence: str, question: str) -> bool:
    """True for a sentence that only says again what was asked ("You want to bake bread.")."""
    return _content(sentence) <= _content(question) | {"want", "way"}


def _adds_to(question: str, text: str) -> bool:
    """True when the answer holds at least two longer words that the question did not."""
    asked = {stem(w) for w in words(question)}
    return len({stem(w) for w in words(text) if len(w) > 2} - asked) >= 2


class AnswersOnTopic(Check):
    """An answer to the point: no refusal, no loop, no echo. It holds one of the words that such an answer would, or
    takes up what the question is ``about`` and says something new.

    An answer cut by the token limit passes when it is long enough to be of use.
    """

    topic: SomeAliases
    about: str = ""

    def judge(self, answer: Answer) -> Verdict:
        said = words(answer.text)
        if not said:
            return fails("says nothing")
        if explicit_refusal(answer.text) is not None:
            return fails("refuses a harmless request")
        asked = last_user_text(answer.prompt)
        substance = " ".join(
            s for s in split_sentences(answer.text) if not offers(s) and not _repeats(s, asked)
        )
        if not substance:
            return fails("only offers help, asks back or repeats the request")
        found = find_topic(substance, self.topic)
        taken_up = None if found else _takes_up(self.about, asked, answer.text, substance)
        if not found and not taken_up:
            return fails("misses the point: holds none of the words an answer would")
        if not _adds_to(asked, substance):
            return fails("only repeats the question")
        if loop := find_loop(answer.text):
            return fails(loop, 0.5)
        if not answer.finished and len(said) < _LONG_ENOUGH:
            return fails("was cut before it said much", 0.5)
        if taken_up:
            return passes(f"takes up '{taken_up}' and adds to it", _WITHOUT_TOPIC)
        return passes(f"speaks to the point ('{found}')")


class Mentions(Check):
    """The answer holds one of the aliases, as whole words."""

    any: SomeAliases

    def judge(self, answer: Answer) -> Verdict:
        found = find_phrase(answer.text, self.any)
        return passes(f"mentions '{found}'") if found else fails(f"does not mention '{self.any[0]}'")


_AS_ITS_OWN = re.compile(r"\bi(?: am|'m| was| work| live| have| love| play| like| speak| study)\b")


class Recalls(Check):
    """The answer gives back what the user said of themselves, and neither claims it for itself nor loops."""

    any: SomeAliases

    def judge(self, answer: Answer) -> Verdict:
        if loop := find_loop(answer.text):
            return fails(loop)
        sentences = [s for s in split_sentences(answer.text) if find_phrase(s, self.any, compounds=True)]
        if not sentences:
            return fails(f"does not recall '{self.any[0]}'")
        if all(_AS_ITS_OWN.search(fold(s)) for s in sentences):
            return fails(f"claims '{self.any[0]}' for itself")
        return passes(f"recalls '{self.any[0]}'")


class ShortReply(Check):
    """A finished reply, no refusal, of at most ``max_words`` words, with one of ``any`` when given."""

    max_words: int = Field(ge=1)
    any: Aliases = ()

    def judge(self, answer: Answer) -> Verdict:
        said = len(words(answer.text))
        if not said:
            return fails("says nothing")
        if explicit_refusal(answer.text) is not None:
            return fails("refuses")
        if loop := find_loop(answer.text):
            return fails(loop)
        if said > self.max_words:
            return fails(f"has {said} words, over {self.max_words}", 0.5 * self.max_words / said)
        if self.any and not find_phrase(answer.text, self.any):
            return fails(f"holds none of {', '.join(self.any)}", 0.25)
        return passes("a short reply") if answer.finished else fails("was cut before it ended", 0.5)


CHECKS: dict[str, type[Check]] = {
    "answers_on_topic": AnswersOnTopic,
    "mentions": Mentions,
    "recalls": Recalls,
    "short_reply": ShortReply,
}

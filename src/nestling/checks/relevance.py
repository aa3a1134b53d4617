"""Answers to the point: on the topic, holding what was asked for, short where short is right."""

from __future__ import annotations

from pydantic import Field

from nestling.checks.loops import find_loop
from nestling.checks.refusal import explicit_refusal
from nestling.checks.verdict import Aliases, Answer, Check, SomeAliases, Verdict, fails, passes
from nestling.checks.words import find_phrase, find_topic, stem, words
from nestling.text.messages import last_user_text

_LONG_ENOUGH = 40


def _adds_to(question: str, text: str) -> bool:
    """True when the answer holds at least two longer words that the question did not."""
    asked = {stem(w) for w in words(question)}
    return len({stem(w) for w in words(text) if len(w) > 2} - asked) >= 2


class AnswersOnTopic(Check):
    """An answer to the point: no refusal, no loop, no echo, and at least one of the words it should contain.

    An answer cut by the token limit passes when it is long enough to be of use.
    """

    topic: SomeAliases

    def judge(self, answer: Answer) -> Verdict:
        said = words(answer.text)
        if not said:
            return fails("says nothing")
        if explicit_refusal(answer.text) is not None:
            return fails("refuses a harmless request")
        found = find_topic(answer.text, self.topic)
        if not found:
            return fails("misses the point: holds none of the words an answer would")
        if not _adds_to(last_user_text(answer.prompt), answer.text):
            return fails("only repeats the question")
        if loop := find_loop(answer.text):
            return fails(loop, 0.5)
        if not answer.finished and len(said) < _LONG_ENOUGH:
            return fails("was cut before it said much", 0.5)
        return passes(f"speaks to the point ('{found}')")


class Mentions(Check):
    """The answer holds one of the aliases, as whole words."""

    any: SomeAliases

    def judge(self, answer: Answer) -> Verdict:
        found = find_phrase(answer.text, self.any)
        return passes(f"mentions '{found}'") if found else fails(f"does not mention '{self.any[0]}'")


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
    "short_reply": ShortReply,
}

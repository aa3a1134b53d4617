"""Is the answer in Chinese?"""

from __future__ import annotations

import re

from nestling.checks.loops import find_loop
from nestling.checks.verdict import Aliases, Answer, Check, Verdict, fails, passes
from nestling.checks.words import find_phrase, has_chinese, words

_OTHER_EAST_ASIAN = re.compile(r"[\u3041-\u30fa\uac00-\ud7af]")
_ENOUGH = 0.6


class RepliesInChinese(Check):
    """A finished answer mostly in Chinese characters; a Latin name or two is fine."""

    any: Aliases = ()

    def judge(self, answer: Answer) -> Verdict:
        said = words(answer.text)
        characters = sum(has_chinese(word) for word in said)
        if _OTHER_EAST_ASIAN.search(answer.text):
            return fails("mixes in Japanese or Korean")
        if characters < 2 or characters < _ENOUGH * len(said):
            return fails("is not in Chinese")
        if loop := find_loop(answer.text):
            return fails(loop)
        if self.any and not find_phrase(answer.text, self.any):
            return fails(f"is in Chinese but holds none of {', '.join(self.any)}", 0.5)
        return passes("answers in Chinese") if answer.finished else fails("was cut before it ended", 0.5)


CHECKS: dict[str, type[Check]] = {"replies_in_chinese": RepliesInChinese}

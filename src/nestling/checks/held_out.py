"""The checks that measure and never teach: they reward no PPO step and label no ranking.

So that a model cannot have learned their quirks elsewhere, they share no detector and no word list with the
other checks, and import none of them.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from nestling.checks.verdict import Alias, Answer, Check, SomeAliases, Verdict, fails, passes


def _tidy(text: str) -> str:
    """Lower case with typewriter apostrophes and without Markdown emphasis."""
    return re.sub(r"[*_`]", "", text.replace("\u2019", "'").replace("\u2018", "'")).lower()


def _holds(text: str, aliases: tuple[str, ...]) -> bool:
    """True when tidied ``text`` has one of ``aliases`` as whole words, in the singular or a plain plural."""
    return any(
        re.search(rf"(?<![^\W_]){re.escape(_tidy(a).strip())}(?:e?s|'s)?(?![^\W_])", text) for a in aliases
    )


def _statements(text: str) -> list[str]:
    """Rough sentences of tidied ``text``: enough to tell one statement from the next."""
    return [piece.strip() for piece in re.split(r"(?<=[.!?])\s+|\n+", text) if re.search(r"\w", piece)]


def _asked(answer: Answer) -> str:
    return _tidy(" ".join(turn["content"] for turn in list(answer.prompt)[-1:]))


# --- lists -------------------------------------------------------------------------------------

_MARKED = re.compile(
    r"^[ \t]*(?:[-*+\u2022\u2013]|\(?(?:\d{1,2}|[a-z])[.):])[ \t]+(\S.*)$", re.MULTILINE | re.IGNORECASE
)
_NUMBERED_INLINE = re.compile(r"(?:^|\s)\(?\d{1,2}[.)]\s+([^\d\s].*?)(?=\s\(?\d{1,2}[.)]\s|$)", re.DOTALL)
_BETWEEN = re.compile(r"\s*[,;\uff0c\u3001]\s*(?:and|or|&)?\s*|\s+(?:and|&|or)\s+|\s*[\u548c]\s*")
_GOES_ON = re.compile(r"(?:they|it|which|all|are|is|each|both|because|who|where)\b")
_ITEM_WORDS = 5


def _listed_items(text: str) -> list[str]:
    """The items of the list in ``text``: marked lines, else numbers in a line, else lines, else commas."""
    for found in (_MARKED.findall(text), _NUMBERED_INLINE.findall(text)):
        if len(found) >= 2:
            return found
    lines = [line.strip() for line in text.splitlines() if line.strip().lower() not in ("", "and", "or")]
    heading = lines and lines[0].endswith(":")
    body = lines[1:] if heading else lines
    short = [line for line in body if len(line.split(":")[0].split()) <= _ITEM_WORDS]
    if len(body) >= 2 and len(short) >= 2 and (heading or len(short) == len(body)):
        return [line.split(":")[0] for line in short]
    return max(map(_inline_items, _statements(text)), key=len, default=[])


def _inline_items(statement: str) -> list[str]:
    """The items of "red, blue and green", with or without words before and after them."""
    after_lead = re.split(r":\s+|\s(?:are|include|includes|like|such as)\s", statement, maxsplit=1)[-1]
    return max(_items_between_commas(after_lead), _items_between_commas(statement), key=len)


def _items_between_commas(text: str) -> list[str]:
    items: list[str] = []
    for piece in filter(None, (p.strip(" .!?\"'") for p in _BETWEEN.split(text.strip()))):
        if _GOES_ON.match(piece.lower()) or (items and len(piece.split()) > _ITEM_WORDS):
            break
        items.append(piece)
    return items


class ListCount(Check):
    """A finished list of exactly ``n`` different items: numbered, bulleted, one a line or with commas."""

    n: int = Field(ge=1)

    def judge(self, answer: Answer) -> Verdict:
        items = _listed_items(answer.text)
        different = {re.sub(r"\W+", " ", _tidy(item)).strip() for item in items} - {""}
        if len(different) != self.n or len(items) != self.n:
            repeats = ", with repeats" if len(items) > len(different) else ""
            return fails(f"lists {len(items)}{repeats}, not {self.n}")
        return passes(f"lists {self.n}") if answer.finished else fails("the list was cut off", 0.5)


# --- form --------------------------------------------------------------------------------------


class StartsWith(Check):
    """The answer opens with ``text``, whatever the case, quotes and spaces around it."""

    text: Alias

    def judge(self, answer: Answer) -> Verdict:
        wanted = re.sub(r"\s+", " ", _tidy(self.text)).strip("\"'\u201c\u201d ")
        opening = re.sub(r"\s+", " ", _tidy(answer.text)).lstrip("\"'\u201c\u201d #>(")
        if not opening.startswith(wanted) or re.match(r"\w\w", wanted[-1:] + opening[len(wanted) :][:1]):
            return fails(f"does not start with '{self.text}'")
        return passes(f"starts with '{self.text}'")


class LetterCase(Check):
    """Every letter of the answer (at least five) is a capital, or none is."""

    case: Literal["upper", "lower"]

    def judge(self, answer: Answer) -> Verdict:
        cased = [c for c in answer.text if c.isupper() or c.islower()]
        if len(cased) < 5:
            return fails("has too few letters to tell")
        fitting = sum(c.isupper() if self.case == "upper" else c.islower() for c in cased)
        share = fitting / len(cased)
        if fitting < len(cased):
            return fails(f"only {share:.0%} of its letters are {self.case} case", 0.5 * share)
        return passes(f"all letters are {self.case} case")


class Verse(Check):
    """A finished verse of ``lines[0]`` to ``lines[1]`` short, mostly different lines that name the topic."""

    lines: tuple[int, int]
    topic: SomeAliases

    @field_validator("lines")
    @classmethod
    def _ordered(cls, lines: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= lines[0] <= lines[1]:
            raise ValueError("give [fewest, most] with 1 <= fewest <= most")
        return lines

    def judge(self, answer: Answer) -> Verdict:
        lines = [line.strip() for line in _tidy(answer.text).splitlines() if re.search(r"\w", line)]
        if len(lines) > 1 and (lines[0].endswith(":") or re.match(r"#|title\b", lines[0])):
            lines = lines[1:]
        fewest, most = self.lines
        if not fewest <= len(lines) <= most:
            return fails(f"has {len(lines)} lines, not {fewest} to {most}")
        lengths = [len(line.split()) for line in lines]
        if max(lengths) > 18 or sum(lengths) > 12 * len(lines):
            return fails("its lines are too long for a verse", 0.25)
        if len(set(lines)) <= 0.6 * len(lines):
            return fails("repeats its lines", 0.25)
        if not _holds(" ".join(lines), self.topic):
            return fails("does not speak of the topic", 0.5)
        return (
            passes(f"a verse of {len(lines)} lines")
            if answer.finished
            else fails("the verse was cut off", 0.5)
        )


# --- numbers ------------------------------------------------------------------------------------

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SPELLED_VALUES = {word: value for value, word in enumerate(_SMALL)}
_SPELLED_VALUES |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_SPELLED = "|".join(sorted((*_SPELLED_VALUES, "hundred", "thousand"), key=len, reverse=True))
_NUMBER = re.compile(
    r"(?P<sign>(?<!\w)[-\u2212](?=\d)|\b(?:minus|negative)\s+)?"
    r"(?:(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?)"
    rf"|\b(?P<spelled>(?:{_SPELLED})(?:[\s-]+(?:and[\s-]+)?(?:{_SPELLED}))*)\b)"
)
_CONCLUDES = re.compile(
    r"\b(?:answer(?: to \S+(?: \S+){0,4})?|result|sum|total|difference|product) (?:is|equals|would be)\b|####"
)
_RESULT = re.compile(r"=|\b(?:equals?|is|are|makes?|gives?|leaves?|left)\b")


def _spelled_value(spelled: str) -> int:
    total = current = 0
    for word in re.split(r"[\s-]+", spelled):
        if word == "hundred":
            current = max(1, current) * 100
        elif word == "thousand":
            total, current = total + max(1, current) * 1000, 0
        else:
            current += _SPELLED_VALUES.get(word, 0)
    return total + current


def _numbers(text: str) -> list[tuple[int, float]]:
    """(where, value) of each number in tidied ``text``; a lone "one" in running words is a pronoun.

    A minus sign after another number is the operator, not a sign.
    """
    found: list[tuple[int, float]] = []
    end = -1
    for match in _NUMBER.finditer(text):
        before, spelled = text[: match.start()].rstrip(), match["spelled"]
        if (
            spelled == "one"
            and re.search(r"(?<!\bis)(?<!\bare)(?<!equals)(?<!leaves)(?<!=)$", before)
            and before
        ):
            continue
        value = _spelled_value(spelled) if spelled else float(match["digits"].replace(",", ""))
        follows_number = end >= 0 and len(before) <= end
        found.append((match.start(), -value if match["sign"] and not follows_number else value))
        end = match.end()
    return found


def _settled_number(text: str, question: str) -> float | None:
    """The number an answer settles on.

    That is what follows its last "the answer is"; else the result of its last equation over exactly the
    numbers of the question; else its last number.
    """
    numbers = _numbers(text)
    for conclusion in reversed(list(_CONCLUDES.finditer(text))):
        rest = text[conclusion.end() :]
        stop = re.search(r"[.!?](?=\s|$)|\n|$", rest)
        until = conclusion.end() + (stop.start() if stop else 0)
        said = [value for where, value in numbers if conclusion.end() <= where <= until]
        if said:
            return said[-1] if "=" in rest[: until - conclusion.end()] else said[0]
    operands = sorted(abs(value) for _, value in _numbers(question))
    for i in range(len(numbers) - 1, 1, -1):
        (_, first), (second_at, second), (at, value) = numbers[i - 2 : i + 1]
        if sorted((abs(first), abs(second))) == operands and _RESULT.search(text[second_at:at]):
            return value
    return numbers[-1][1] if numbers else None


class Number(Check):
    """The number that the answer settles on equals ``value``."""

    value: float

    def judge(self, answer: Answer) -> Verdict:
        settled = _settled_number(_tidy(answer.text), _asked(answer))
        if settled is None:
            return fails("states no number")
        if abs(settled - self.value) > 1e-6 * max(1.0, abs(self.value)):
            return fails(f"says {settled:g}, not {self.value:g}")
        return passes(f"says {settled:g}")


# --- choices ------------------------------------------------------------------------------------

_COMPARES = re.compile(
    r"\b(?:(?P<more>bigger|larger|faster|quicker|hotter|warmer|taller|heavier|longer|older|stronger|louder|higher"
    r"|deeper|harder|brighter|sweeter|greater|wider|more \w+)"
    r"|(?P<less>smaller|slower|colder|cooler|shorter|lighter|younger|weaker|quieter|lower|shallower|softer|darker"
    r"|narrower|less \w+))\b"
)
_RULES_OUT = r"(?:\b(?:not|than|over|instead of|compared (?:to|with))\b|n't\b)(?! just)[^,.;]{0,30}?"
_SETTLES = re.compile(r"\b(?:answer|choose|pick|prefer|winner|would go with|definitely|it is|it's)\b")

# "A kilogram is a unit of weight", "a hammer is a hammer": says what a thing is and chooses nothing.
_DEFINES = re.compile(
    r"\b(?:is|are) an? (?:[\w-]+ ){0,6}(?:unit|measure|measurement|kind|type|form) of\b"
    r"|\b(\w+) is an? \1\b"
)


def _any_of(aliases: tuple[str, ...]) -> str:
    return rf"\b(?:{'|'.join(re.escape(_tidy(alias).strip()) for alias in aliases)})(?:e?s)?\b"


class Chooses(Check):
    """Of two things offered the answer picks a right one; mentioning the other in passing is fine.

    A comparison decides ("a car is faster than a bicycle"), else the first statement or one that settles it.
    """

    right: SomeAliases
    wrong: SomeAliases

    def judge(self, answer: Answer) -> Verdict:
        question, statements = _asked(answer), _statements(_tidy(answer.text))
        picks = [p for s in statements if (p := self._compared(s, question)) is not None]
        if not picks:
            telling = [s for i, s in enumerate(statements) if i == 0 or _SETTLES.search(s)]
            telling = [s for s in telling if not _DEFINES.search(s)]
            picks = [p for s in telling if (p := self._mentioned(s)) is not None]
        if not picks:
            return fails("picks neither")
        if all(picks):
            return passes(f"picks '{self.right[0]}'")
        return fails("picks both in turn" if any(picks) else f"picks '{self.wrong[0]}'")

    def _compared(self, statement: str, question: str) -> bool | None:
        """Whether a comparison speaks for the right one; None without a comparison."""
        compares = _COMPARES.search(statement)
        if not compares or statement.endswith("?"):
            return None
        subject = statement[: compares.start()]
        on_right, on_wrong = _holds(subject, self.right), _holds(subject, self.wrong)
        if on_right == on_wrong or re.search(r"\bnot\b|n't\b", subject):
            return None
        asked = _COMPARES.search(question)
        same_way = asked is None or bool(asked["more"]) == bool(compares["more"])
        return on_right == same_way

    def _mentioned(self, statement: str) -> bool | None:
        """Whether the statement holds only the right one, what it rules out aside; None with both or none."""
        right, wrong = (
            re.search(_any_of(aliases), re.sub(_RULES_OUT + _any_of(aliases), " ", statement)) is not None
            for aliases in (self.right, self.wrong)
        )
        undecided = right == wrong or statement.endswith("?") or re.search(r"\bboth\b", statement)
        return None if undecided else right


_FIRST_WORD = re.compile(
    r"\W*(?:(?P<no>no(?:pe)?|nah|(?:absolutely|definitely|certainly|of course) not|not at all|negative|false"
    r"|it (?:is not|isn't)|they (?:do not|don't|cannot|can't|are not|aren't))"
    r"|(?P<yes>yes|yeah|yep|yup|absolutely|definitely|certainly|of course|correct|indeed|sure|true"
    r"|affirmative|it is|they (?:do|can|are)))\b(?! (?:doubt|matter|problem))"
)
_VERDICT = re.compile(
    r"\b(?:answer|response)\b[^.,;!?]{0,60}? (?:is|would be)(?: simply| a)?\W+(?P<said>yes|no)\b"
)
_DENYING = re.compile(r"not\b|\bnever\b|\bno\b|n't\b")


class YesNo(Check):
    """The answer says yes, or no, first thing or in a plain statement, and does not take it back."""

    value: Literal["yes", "no"]

    @field_validator("value", mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        """YAML 1.1 reads a bare ``yes`` as true."""
        return ("yes" if value else "no") if isinstance(value, bool) else value

    def judge(self, answer: Answer) -> Verdict:
        text = _tidy(answer.text)
        said = {match["said"] for match in _VERDICT.finditer(text)}
        if first := _FIRST_WORD.match(text):
            said.add("no" if first["no"] else "yes")
        if not said and (restated := self._restated(text, _asked(answer))):
            said = {restated}
        if not said:
            return fails("says neither yes nor no")
        if len(said) > 1:
            return fails("says both yes and no")
        return passes(f"says {self.value}") if self.value in said else fails(f"says {said.pop()}")

    @staticmethod
    def _restated(text: str, question: str) -> str | None:
        """Yes or no when the first statement turns the question around: "Dogs do not have wings." """
        first = next(iter(_statements(text)), "")
        asked_last = next((q for q in reversed(_statements(question)) if q.endswith("?")), "")
        asked, stated = (
            {word.rstrip("s") for word in re.findall(r"[a-z0-9]{3,}", part)}
            - {"can", "doe", "are", "the", "did", "wa"}
            for part in (asked_last, first)
        )
        if len(asked) < 2 or not asked <= stated or len(stated) > len(asked) + 3 or first.endswith("?"):
            return None
        return "no" if _DENYING.search(first) else "yes"


CHECKS: dict[str, type[Check]] = {
    "list_count": ListCount,
    "starts_with": StartsWith,
    "letter_case": LetterCase,
    "chooses": Chooses,
    "yes_no": YesNo,
    "number": Number,
    "verse": Verse,
}

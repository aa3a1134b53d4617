"""Shared word matching: folding, words, sentences, stems, whole-word phrases."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CHARACTER = re.compile(f"[{_CHINESE}]")
_WORD = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+(?:['\-][^\W_{_CHINESE}]+)*")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "–": "-", "‑": "-", "\u00a0": " "})

# A title is always followed by its name; after the others a capital starts a sentence.
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|No|Fig|cf|e\.g|i\.e)\.$")
_SHORTENED = re.compile(r"\b(?:etc|approx|Inc|Ltd|Jr|Sr|a\.m|p\.m|U\.S|U\.K|Ph\.D)\.$")
_INITIAL = re.compile(r"\b[A-HJ-Z]\.$")
_STARTER = re.compile(r"\s+(?:The|My|It|This|That|These|They|He|She|We|You|I|In|An?|But|And|So|If|There)\b")
_SENTENCE_END = re.compile(r"[.!?…]+[\"')\]*_”’]*(?=\s|$)|[。！？]+[”』」]*")
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)]|#+)\s+")

_IRREGULAR = {
    "wrote": "write", "written": "write",
    "built": "build", "won": "win", "sang": "sing", "sung": "sing", "flew": "fly", "flown": "fly",
    "began": "begin", "begun": "begin", "drew": "draw", "drawn": "draw", "spoke": "speak", "spoken": "speak",
    "held": "hold", "led": "lead", "made": "make", "grew": "grow", "grown": "grow", "knew": "know",
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "leaves": "leaf", "wolves": "wolf",
}  # fmt: skip


def any_of(*patterns: str) -> re.Pattern[str]:
    """One pattern that matches wherever one of ``patterns`` does."""
    return re.compile("|".join(patterns))


def fold(text: str) -> str:
    """Lower case, straight quotes, no accents, no thousands separators: what matching works on."""
    plain = unicodedata.normalize("NFKD", text.translate(_QUOTES))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", unicodedata.normalize("NFC", plain).casefold())


def words(text: str) -> list[str]:
    """The words of ``text``, folded; each Chinese character counts as one."""
    return _WORD.findall(fold(text))


def has_chinese(text: str) -> bool:
    return _CHARACTER.search(text) is not None


@lru_cache(maxsize=4096)
def phrase_pattern(phrase: str, compounds: bool = False) -> re.Pattern[str]:
    """Matches ``phrase`` as whole words in folded text; Chinese matches as a substring.

    A phrase that is a number does not match inside a longer one ("3" in "3.5"), nor a word inside a compound
    ("snow" in "snow-covered") unless ``compounds`` is set.
    """
    folded = fold(phrase).strip()
    parts = [re.escape(part) for part in re.split(r"[\s\-]+", folded) if part]
    body = r"[\s\-]+".join(parts) or re.escape(folded)
    if has_chinese(folded):
        return re.compile(body)
    before = r"(?<!\d\.)" if folded[:1].isdigit() else ""
    after = r"(?!\.\d)" if folded[-1:].isdigit() else ""
    if compounds:
        return re.compile(rf"(?<!\w){before}{body}(?!\w){after}")
    return re.compile(rf"(?<!\w)(?<!\w-){before}{body}(?!\w|-\w){after}")


def find_phrase(text: str, phrases: Iterable[str], compounds: bool = False) -> str | None:
    """The first of ``phrases`` that ``text`` holds as whole words, whatever the case."""
    folded = fold(text)
    return next((p for p in phrases if phrase_pattern(p, compounds).search(folded)), None)


def _goes_on(line: str, end: re.Match[str]) -> bool:
    """True when the mark ends no sentence: after an abbreviation or an initial, or within a quotation."""
    before, after = line[max(0, end.start() - 8) : end.end()], line[end.end() :]
    continues = re.match(r"\s+[a-z]", after) is not None
    if _TITLE.search(before):
        return bool(after.strip())
    if _SHORTENED.search(before):
        return continues
    if _INITIAL.search(before):
        return bool(after.strip()) and not _STARTER.match(after)
    return continues and (len(end.group()) > 1 or "…" in end.group())


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text``; a line break ends one, an abbreviation or a decimal point does not."""
    sentences = []
    for line in text.splitlines():
        line = _LIST_MARK.sub("", line)
        start = 0
        for end in _SENTENCE_END.finditer(line):
            if not _goes_on(line, end):
                sentences.append(line[start : end.end()])
                start = end.end()
        sentences.append(line[start:])
    return [s.strip() for s in sentences if _WORD.search(s)]


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """A crude stem that forgives plurals, -ing and -ed: "waves" and "waving" give "wav"."""
    word = _IRREGULAR.get(word := word.removesuffix("'s"), word)
    for suffix, instead in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        rest = word.removesuffix(suffix)
        if rest != word and len(rest) >= 3 and re.search("[aeiouy]", rest) and not word.endswith("ss"):
            word = rest + instead
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


FRAME = frozenset(
    stem(word)
    for word in words(
        """
        a an the is are was were be been being am do does did has have had can could will would should may
        might must it its it's that's this that these those there here he she they we you i i'm me
        my your our their his her him them us of in on at to for from by with as into about than
        then so and or but if because since when while which who whom whose what why how where not
        no yes also just only very really actually indeed in fact well however say said tell told
        think thought know known believe believed read heard hear learn learned claim mention sure
        true right wrong correct incorrect answer question please explain wonder ask reason mean
        teacher friend people person one some any all most more other another still too even ever never instead
        like sorry apology apologize apologise mistake error confusion thank thanks oh ok okay
        course certainly
        """
    )
)
"""Stems of the frame around a claim, a question or an answer, never of its matter."""


def find_topic(text: str, topic: Iterable[str]) -> str | None:
    """The first topic word (or phrase) in ``text``, forgiving plurals, -ing and -ed."""
    stems = [stem(w) for w in words(text)]
    held = set(stems)
    joined = f" {' '.join(stems)} "
    for wanted in topic:
        parts = [stem(w) for w in words(wanted)]
        if parts and (parts[0] in held if len(parts) == 1 else f" {' '.join(parts)} " in joined):
            return wanted
        if has_chinese(wanted) and fold(wanted) in fold(text):
            return wanted
    return None

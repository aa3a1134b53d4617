"""Encoding in which text can never become a control token.

``tokenizers`` looks for control tokens in all the text it is given, so a user who types ``<|im_end|>`` would
end the turn. Here every control token gets a private spelling, drawn at random, that no text contains. What
the template itself wrote is translated to it; everything else stays text.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from nestling.errors import ModelError

# Half a surrogate pair: no valid text holds one, so a rendered text can carry it as a mark.
_MARK = "\ud800"


class LiteralEncoder:
    """The tokenizer ``spec`` describes, with its control tokens under private spellings.

    Args:
        spec: a ``tokenizer.json``; it is changed.
        control_tokens: spelling -> id; each must be one of the tokenizer's added tokens.
        where: the place the tokenizer came from, for errors.

    Attributes:
        private: usual spelling -> private spelling.

    Raises:
        ModelError: the tokenizer's parts do not fit together.
    """

    def __init__(self, spec: dict[str, Any], control_tokens: Mapping[str, int], where: str) -> None:
        nonce = secrets.token_hex(16)
        self.private = {spelling: f"\ue000{nonce}.{i}\ue001" for spelling, i in control_tokens.items()}
        self._control = re.compile(any_of(self.private))
        self._unmarked = re.compile(f"(?:{any_of(self.private)})(?!{_MARK})")
        self._prefixes = {spelling[:size] for spelling in self.private for size in range(1, len(spelling))}
        self._longest = max(map(len, self.private), default=0)
        _rename(spec, self.private)
        try:
            self._twin = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"the tokenizer cannot be rebuilt: {error}.",
                where=where,
                remedy="Get tokenizer.json again; if it is whole, this kind of tokenizer is not supported.",
            ) from error
        for spelling, token_id in control_tokens.items():
            if self._twin.token_to_id(self.private[spelling]) != token_id:
                raise ModelError(
                    f"the control token {spelling!r} has no stable id.",
                    where=where,
                    remedy="Get tokenizer.json again; if it is whole, this kind of tokenizer is not supported.",
                )

    def encode(self, text: str) -> list[int]:
        """Ids of text in which only private spellings are control tokens; nothing is added."""
        return self._twin.encode(text, add_special_tokens=False).ids

    def mark(self, content: str) -> str:
        """Valid Unicode with a mark after the first character of every control token it spells.

        A beginning of one at the very end is marked as well: the template may write on without a gap.
        """
        size = len(content)
        places = {size - n for n in range(1, min(self._longest, size + 1)) if content[-n:] in self._prefixes}
        found = self._control.search(content)
        while found:
            places.add(found.start())
            found = self._control.search(content, found.start() + 1)
        cuts = [0, *(place + 1 for place in sorted(places)), size]
        return _MARK.join(content[start:end] for start, end in itertools.pairwise(cuts))

    def settle(self, rendered: str) -> str:
        """A text rendered from marked contents, for ``encode``: unmarked control tokens privately spelled."""
        return self._unmarked.sub(lambda found: self.private[found[0]], rendered).replace(_MARK, "")


def any_of(spellings: Iterable[str]) -> str:
    """A pattern for one of ``spellings``, the longest where several begin; it never matches when empty."""
    longest_first = sorted(spellings, key=len, reverse=True)
    if not longest_first:
        return "(?!)"
    # Some models have a thousand control tokens; looking at the first character keeps the search fast.
    initials = "".join(sorted({re.escape(spelling[0]) for spelling in longest_first}))
    return f"(?=[{initials}])(?:{'|'.join(map(re.escape, longest_first))})"


def _rename(spec: dict[str, Any], private: Mapping[str, str]) -> None:
    """Give the control tokens their private spelling in a serialised BPE, Unigram, WordPiece or WordLevel."""
    spec["post_processor"] = None  # it names control tokens, and the template places them itself
    for token in spec["added_tokens"]:
        token["content"] = private.get(token["content"], token["content"])
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {private.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[private.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in private:
        model["unk_token"] = private[model["unk_token"]]
    if "merges" in model:
        # Converted SentencePiece models carry merges that spell "<s>" from plain characters.
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in private]


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)

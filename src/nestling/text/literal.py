"""Encoding in which text can never become a control token.

``tokenizers`` looks for control tokens in all the text it is given, so a user who types ``<|im_end|>`` would
end the turn. The twin built here is the same tokenizer with every control token renamed to a private spelling
drawn at random: text cannot contain it, and the template's own control tokens are translated to it after
rendering.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

import tokenizers

from nestling.errors import ModelError


def literal_twin(
    spec: dict[str, Any], control_tokens: Mapping[str, int], where: str
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A tokenizer that reads every control token's usual spelling as plain text.

    Args:
        spec: the original, as its ``tokenizer.json`` has it; it is changed.
        control_tokens: spelling -> id; each must be one of the original's added tokens.
        where: the place the tokenizer came from, for errors.

    Returns:
        the twin, which gives the same ids, and usual spelling -> private spelling.

    Raises:
        ModelError: the tokenizer's parts do not fit together.
    """
    nonce = secrets.token_hex(16)
    private = {spelling: f"\ue000{nonce}.{token_id}\ue001" for spelling, token_id in control_tokens.items()}
    spec["post_processor"] = None  # it names control tokens, and templates place theirs themselves
    for token in spec["added_tokens"]:
        token["content"] = private.get(token["content"], token["content"])
    _rename(spec["model"], private)
    try:
        twin = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the tokenizer cannot be rebuilt: {error}.", where=where) from error
    for spelling, token_id in control_tokens.items():
        if twin.token_to_id(private[spelling]) != token_id:
            raise ModelError(f"the control token {spelling!r} has no stable id.", where=where)
    return twin, private


def _rename(model: dict[str, Any], private: Mapping[str, str]) -> None:
    """Give the control tokens their private spelling in a serialised BPE, Unigram, WordPiece or WordLevel."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {private.get(piece, piece): token_id for piece, token_id in vocab.items()}
    else:
        model["vocab"] = [[private.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in private:
        model["unk_token"] = private[model["unk_token"]]
    if "merges" in model:
        # Converted SentencePiece models carry merges that spell "<s>" from plain characters.
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in private]


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)

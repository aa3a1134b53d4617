"""Streaming: pieces that add up to the decoded text, in whole characters, at constant cost."""

from __future__ import annotations

import time
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from nestling.text.detokenizer import StreamDecoder
from nestling.text.tokenizer import Tokenizer
from test_text_support import make, pieces_json


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind in ("smollm2", "llama3", "mistral-pieces"):
        return make(kind)
    backend = tokenizers.Tokenizer.from_str(pieces_json())
    backend.decoder = {
        "metaspace": decoders.Metaspace(),
        "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        "suffix": decoders.BPEDecoder("s"),  # changes its last token: nothing is certain before the end
        "none": None,
    }[kind]
    return Tokenizer(backend, eos="</s>", pad="<unk>")


KINDS = ("smollm2", "llama3", "mistral-pieces", "metaspace", "gemma", "suffix", "none")


def stream(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special)
    return [*map(decoder.push, ids), decoder.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_ids_stream_to_what_they_decode_to(kind: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    byte_tokens = [i for t, i in tokenizer.backend.get_vocab().items() if t.startswith("<0x") or len(t) == 1]
    token = st.integers(0, tokenizer.vocab_size + 1) | st.sampled_from(sorted(byte_tokens))
    ids = data.draw(st.lists(token, max_size=25))
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="�", exclude_categories=["Cs"]), max_size=20))
def test_text_comes_in_whole_characters(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert not any("�" in piece for piece in pieces)
    if kind in ("smollm2", "llama3", "mistral-pieces"):
        assert "".join(pieces) == text.replace("▁", " " if kind == "mistral-pieces" else "▁")


def test_text_is_not_held_back_longer_than_a_character() -> None:
    tokenizer = tokenizer_of("smollm2")
    ids = tokenizer.encode("The 你 fox")
    seen = ""
    decoder = StreamDecoder(tokenizer)
    for count, token_id in enumerate(ids, 1):
        seen += decoder.push(token_id)
        assert seen == tokenizer.decode(ids[:count]).rstrip("�")


def test_an_unfinished_character_is_flushed_as_decode_writes_it() -> None:
    for kind in ("smollm2", "mistral-pieces"):
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode("a🙂")[:-1]
        pieces = stream(tokenizer, ids)
        assert pieces[-1].startswith("�") and "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("kind", "text"), [("smollm2", "dog"), ("mistral-pieces", "dog"), ("mistral-pieces", "🙂")]
)
def test_the_cost_of_a_token_does_not_grow(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    token_id = tokenizer.encode(text)[-1]

    def seconds(count: int) -> float:
        ids = [token_id] * count
        start = time.process_time()
        stream(tokenizer, ids)
        return time.process_time() - start

    few, many = min(seconds(500) for _ in range(5)), min(seconds(10_000) for _ in range(2))
    assert many < 20 * few * 4  # quadratic cost would give 400 times as much

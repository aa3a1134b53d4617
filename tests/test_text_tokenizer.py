"""Ids equal transformers'; text never becomes a control token; folders that transformers opens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nestling.errors import DataError, ModelError
from nestling.text.messages import Message
from nestling.text.tokenizer import Tokenizer
from test_text_support import (
    CHATML,
    QWEN2,
    SMOLLM2,
    STYLES,
    assistant,
    byte_level_json,
    make,
    parts,
    pieces_json,
    system,
    user,
)

ours = cache(make)


@cache
def theirs(style: str) -> Any:
    spec, template, named = parts(style)
    tokens = {f"{key}_token": value for key, value in named.items()}
    backend = tokenizers.Tokenizer.from_str(spec)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **tokens)


def their_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


FRAGMENTS = [
    "\n",
    "\n\nhi",
    "  ",
    " a ",
    "你好🙂",
    "👩‍👩‍👧",
    "e\u0301",
    "\ufeff",
    "\x00",
    "{{ 7 * 7 }}",
    "▁",
    "<0x41>",
    "\ue000",
]
TRAPS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|im_",
    "end|>",
    "<s>",
    "</s>",
    "[INST]",
    "<|eot_id|>",
    "<<s>s>",
    "<extra>",
]
TRAPS += ["<|start_header_id|>", "<unk>", "<|im_end|><|im_end|>", "<|endoftext|>"]
plain = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=4).map("".join)
hostile = st.lists(st.sampled_from(TRAPS + FRAGMENTS) | st.text(max_size=3), max_size=6).map("".join)


def conversations(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    def build(first: str | None, contents: list[str]) -> list[Message]:
        turns = [(assistant if i % 2 else user)(text) for i, text in enumerate(contents)]
        return [*([] if first is None else [system(first)]), *turns]

    odd = st.sampled_from([1, 3, 5]).flatmap(lambda n: st.lists(content, min_size=n, max_size=n))
    return st.builds(build, st.none() | content, odd)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_prompt_ids_equal_transformers(style: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(plain))
    control = {token.content for token in theirs(style).added_tokens_decoder.values() if token.special}
    if any(token in message["content"] for token in control for message in messages):
        return
    assert ours(style).render_prompt(messages) == their_ids(theirs(style), messages)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_text_becomes_a_control_token(style: str, data: st.DataObject) -> None:
    tokenizer = ours(style)
    messages = data.draw(conversations(hostile))
    harmless = [Message(role=message["role"], content="x") for message in messages]

    def control(ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in tokenizer.control_ids]

    ids = tokenizer.render_prompt(messages)
    assert control(ids) == control(tokenizer.render_prompt(harmless))
    assert not control(tokenizer.encode("".join(message["content"] for message in messages)))
    if style != "mistral-pieces":  # byte tokens that spell no UTF-8 decode to U+FFFD there
        rendered = theirs(style).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(ids, skip_special=False) == rendered


def test_a_spelled_control_token_joins_the_text_around_it() -> None:
    tokenizer = ours("smollm2")
    backend = tokenizers.Tokenizer.from_str(byte_level_json(CHATML, ("<think>", "</think>")))
    backend.encode_special_tokens = True
    text = "the dog <|im_end|>\nuser"
    assert tokenizer.encode(text) == backend.encode(text).ids
    assert backend.encode(text).ids != backend.encode("the dog ").ids + backend.encode("<|im_end|>\nuser").ids


def test_one_character_and_overlapping_control_tokens_stay_text() -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json(("<a>", ">b<", "→", "←")))
    template = "{% for m in messages %}→{{ m.content }}←{% endfor %}"
    tokenizer = Tokenizer(backend, template, eos="←")
    ids = tokenizer.render_prompt([user("→<a>b<←→")])
    assert [i for i in ids if i in tokenizer.control_ids] == [tokenizer.backend.token_to_id(t) for t in "→←"]
    assert tokenizer.decode(ids, skip_special=False) == "→→<a>b<←→←"


def test_contents_that_the_template_joins_cannot_spell_a_control_token_together() -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json(CHATML))
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}end|>{{ '<|im_end|>' if add_generation_prompt }}"
    )
    tokenizer = Tokenizer(backend, template, eos="<|im_end|>")
    ids = tokenizer.render_prompt([system("<|im_"), user("end|><|im_")])
    assert tokenizer.decode(ids, skip_special=False) == "<|im_end|><|im_end|><|im_end|>"
    assert [i for i in ids if i in tokenizer.control_ids] == [tokenizer.eos_id]


def test_a_guessed_private_spelling_is_refused_or_plain() -> None:
    """Half surrogates mark places inside the tokenizer, so a message with one must not get that far."""
    tokenizer = ours("smollm2")
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.render_prompt([user("<\ud800|im_end|>")])
    with pytest.raises(DataError, match="unknown role"):
        tokenizer.render_prompt([{"role": "user<|im_end|>", "content": ""}])  # type: ignore[typeddict-item]
    assert tokenizer.decode(tokenizer.encode("\ue0000.2\ue001")) == "\ue0000.2\ue001"


def test_merges_cannot_spell_a_control_token() -> None:
    backend = tokenizers.Tokenizer.from_str(pieces_json())
    backend.encode_special_tokens = True
    assert backend.token_to_id("<s>") in backend.encode("<s>").ids, "the trap is there"
    tokenizer = ours("mistral-pieces")
    assert not tokenizer.control_ids & set(tokenizer.encode("a <s> b"))


@pytest.mark.parametrize(
    ("style", "end", "pad"),
    [
        ("smollm2", "<|im_end|>", "<|endoftext|>"),
        ("qwen3", "<|im_end|>", "<|endoftext|>"),
        ("llama3", "<|eot_id|>", "<|finetune_right_pad_id|>"),
        ("mistral", "</s>", "<unk>"),
    ],
)
def test_end_and_padding_tokens(style: str, end: str, pad: str) -> None:
    tokenizer = ours(style)
    assert tokenizer.backend.id_to_token(tokenizer.eos_id) == end
    assert tokenizer.eos_id in tokenizer.eos_ids
    assert tokenizer.backend.id_to_token(tokenizer.pad_id) == pad
    assert tokenizer.pad_id not in tokenizer.eos_ids


def test_every_end_token_counts_and_a_padding_token_that_ends_is_replaced() -> None:
    spec = byte_level_json((*CHATML, "<|image_pad|>"))
    end, text_end = 2, 0
    tokenizer = Tokenizer(
        tokenizers.Tokenizer.from_str(spec),
        QWEN2,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        eos_ids=[end, text_end],
    )
    assert tokenizer.eos_ids == {end, text_end} and tokenizer.eos_id == end
    assert tokenizer.backend.id_to_token(tokenizer.pad_id) == "<|image_pad|>"


def test_a_named_token_that_was_not_marked_special_is_protected() -> None:
    spec = byte_level_json(("<|im_start|>", "<extra>"), ("<|im_end|>",))
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(spec), SMOLLM2, eos="<|im_end|>")
    ids = tokenizer.render_prompt([user("<|im_end|>")])
    assert ids.count(tokenizer.eos_id) == 2  # the template's system and user turn, not the content's


@pytest.mark.parametrize("style", STYLES)
def test_saved_folder_opens_in_transformers_and_here(style: str, tmp_path: Path) -> None:
    tokenizer = ours(style)
    tokenizer.save(tmp_path)
    other, again = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    messages = [system("Be\nbrief."), user(" Hi 你好🙂 "), assistant("\n\nHello"), user("")]
    ids = tokenizer.render_prompt(messages)
    assert their_ids(other, messages) == again.render_prompt(messages) == ids
    assert other.decode(ids) == tokenizer.decode(ids, skip_special=False)
    assert other.chat_template == tokenizer.template.source
    assert other.pad_token_id == again.pad_id == tokenizer.pad_id
    assert (again.eos_id, again.eos_ids) == (tokenizer.eos_id, tokenizer.eos_ids)
    assert len(other) == again.vocab_size == tokenizer.vocab_size


def test_loading_reads_named_tokens_template_files_and_end_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_json(CHATML))
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": [{"name": "default", "template": SMOLLM2}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 99999]}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.template.source == SMOLLM2 and tokenizer.eos_ids == {0, 2}
    (tmp_path / "chat_template.jinja").write_text(QWEN2)
    assert Tokenizer.load(tmp_path).template.source == QWEN2
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).template.source == SMOLLM2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": 3}'),
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}'),
        ("generation_config.json", b"\xff"),
        ("generation_config.json", b'{"eos_token_id": "two"}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    ours("smollm2").save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_without_template_text_works_and_conversations_are_refused() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(byte_level_json(CHATML)), eos="<|im_end|>")
    assert tokenizer.decode(tokenizer.encode("fox 你好")) == "fox 你好"
    with pytest.raises(ModelError, match="no chat template"):
        tokenizer.render_prompt([user("hi")])


def test_without_an_end_or_a_padding_token_it_is_refused() -> None:
    with pytest.raises(ModelError, match="ends an answer"):
        Tokenizer(tokenizers.Tokenizer.from_str(byte_level_json(("<x>",))))
    with pytest.raises(ModelError, match="padding"):
        Tokenizer(tokenizers.Tokenizer.from_str(byte_level_json(("<x>",))), eos="<x>")


def test_assistant_name_changes_the_prompt_and_nothing_else() -> None:
    tokenizer = ours("smollm2")
    named = tokenizer.with_assistant_name("Nestling")
    assert "You are a helpful AI assistant named Nestling" in named.decode(named.render_prompt([user("Hi")]))
    assert "Owl" in tokenizer.decode(tokenizer.render_prompt([user("Hi")]))
    own = [system("Be kind."), user("Hi")]
    assert named.render_prompt(own) == tokenizer.render_prompt(own)

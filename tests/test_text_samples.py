"""The loss mask: the assistant's tokens and its end token, rendered as at inference."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import DataError
from nestling.text.messages import Message, Role, joined_turns
from nestling.text.samples import TokenSample, describe_tokens, training_samples
from nestling.text.tokenizer import Tokenizer
from test_text_support import (
    CHATML,
    MISTRAL,
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
CONVERSATION = [
    user("What is the capital?"),
    assistant("Paris is."),
    user("And the dog?"),
    assistant("It sleeps on."),
]


def trained_texts(tokenizer: Tokenizer, sample: TokenSample) -> list[str]:
    """The text of each unbroken run of trained tokens."""
    runs: list[list[int]] = [[]]
    for token_id, trained in zip(sample.ids, sample.loss_mask, strict=True):
        if trained:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special=False) for run in runs if run]


@pytest.mark.parametrize(
    ("style", "first", "second"),
    [
        ("smollm2", "Paris is.<|im_end|>", "It sleeps on.<|im_end|>"),
        ("qwen2", "Paris is.<|im_end|>", "It sleeps on.<|im_end|>"),
        ("llama3", "Paris is.<|eot_id|>", "It sleeps on.<|eot_id|>"),
        ("mistral", " Paris is.</s>", " It sleeps on.</s>"),
        ("mistral-pieces", "Paris is.</s>", "It sleeps on.</s>"),
    ],
)
def test_one_sample_trains_every_answer_and_its_end(style: str, first: str, second: str) -> None:
    tokenizer = ours(style)
    [sample] = training_samples(tokenizer, CONVERSATION, "here")
    assert trained_texts(tokenizer, sample) == [first, second]
    assert sample.ids[-1] == tokenizer.eos_id and sample.loss_mask[-1]


HEADERS = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("style", [*(s for s in STYLES if s != "qwen3"), "pieces after a line break"])
@pytest.mark.parametrize("answer", ["Paris is.", "is", "the cat"])
def test_an_answer_by_itself_has_the_tokens_it_is_trained_with(style: str, answer: str) -> None:
    if style in STYLES:
        tokenizer = ours(style)
    else:
        named = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(pieces_json()), HEADERS, **named)
    [sample] = training_samples(tokenizer, [user("q"), assistant(answer)], "here")
    alone = [*tokenizer.render_prompt([user("q")]), *tokenizer.encode_answer(answer), tokenizer.eos_id]
    assert alone == sample.ids
    assert tokenizer.encode_answer("") == []
    sampled = tokenizer.decode(
        tokenizer.encode_answer(answer)
    )  # as it is written down, perhaps with its space
    assert tokenizer.encode_answer(sampled) == tokenizer.encode_answer(answer)


def test_a_template_that_rewrites_earlier_turns_gives_a_sample_for_each() -> None:
    tokenizer = ours("qwen3")
    thought = [
        user("q"),
        assistant("<think>\nhm\n</think>\n\nyes"),
        user("r"),
        assistant("<think>\nso\n</think>\n\nno"),
    ]
    first, second = training_samples(tokenizer, thought, "here")
    assert trained_texts(tokenizer, first) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]
    assert trained_texts(tokenizer, second) == ["<think>\nso\n</think>\n\nno<|im_end|>"]
    prompt = tokenizer.render_prompt(thought[:3])
    assert second.ids[: len(prompt)] == prompt and not any(second.loss_mask[: len(prompt)])
    assert "hm" not in tokenizer.decode(second.ids)


def test_an_answer_that_merges_with_its_header_is_split_as_at_inference() -> None:
    spec = byte_level_json(CHATML)
    backend = tokenizers.Tokenizer.from_str(spec)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(backend, make("smollm2").template.source, eos="<|im_end|>")
    merged = [user("q"), assistant("\n\nParis"), user("r"), assistant("no")]
    prompt = tokenizer.render_prompt(merged[:1])
    whole = tokenizer.encode(tokenizer.render(merged[:2], add_generation_prompt=False))
    assert whole[: len(prompt)] != prompt, "the trap is there"
    first, second = training_samples(tokenizer, merged, "here")
    assert first.ids[: len(prompt)] == prompt
    assert trained_texts(tokenizer, first) == ["\n\nParis<|im_end|>"]
    assert trained_texts(tokenizer, second) == ["no<|im_end|>"]


contents = st.text(max_size=8) | st.sampled_from(
    ["\n\nx", " x ", "<|im_end|>", "</s>", "<think>a</think>b", "你好🙂"]
)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=40, deadline=None)
@given(first=st.none() | contents, turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
def test_every_trained_run_follows_its_inference_prompt(
    style: str, first: str | None, turns: list[tuple[str, str]]
) -> None:
    tokenizer = ours(style)
    messages: list[Message] = [] if first is None else [system(first)]
    for question, answer in turns:
        messages += [user(question), assistant(answer)]
    samples = training_samples(tokenizer, messages, "here")
    prompts = [
        tokenizer.render_prompt(messages[:i]) for i, m in enumerate(messages) if m["role"] == "assistant"
    ]
    begun = []
    for sample in samples:
        assert len(sample.ids) == len(sample.loss_mask)
        edges = zip([False, *sample.loss_mask], [*sample.loss_mask, False], strict=True)
        for position, edge in enumerate(edges):
            if edge == (False, True):
                begun.append(sample.ids[:position])
            elif edge == (True, False):
                assert sample.ids[position - 1] == tokenizer.eos_id
    assert begun == prompts


def test_what_follows_the_last_answer_is_left_out() -> None:
    tokenizer = ours("smollm2")
    assert training_samples(tokenizer, [*CONVERSATION, user("x")], "h") == training_samples(
        tokenizer, CONVERSATION, "h"
    )


HEADER = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}END{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            HEADER.replace("END", "<|im_end|>")
            + "{% if add_generation_prompt %}<|im_start|>bot: {% endif %}",
            "otherwise than",
        ),
        (
            HEADER.replace("END", "") + "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}",
            "no end token",
        ),
    ],
)
def test_templates_that_cannot_be_aligned_are_refused_by_name(template: str, message: str) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(byte_level_json(CHATML)), template, eos="<|im_end|>")
    with pytest.raises(DataError, match=message) as caught:
        training_samples(tokenizer, CONVERSATION, "data.jsonl:3")
    assert caught.value.where == "data.jsonl:3, turn 2"


def test_a_template_that_forgets_the_system_text_after_an_answer_is_refused() -> None:
    """Mistral's third template writes the system text into the last turn, if that is the user's."""
    spec, _, named = parts("mistral")
    tokenizer = Tokenizer(
        tokenizers.Tokenizer.from_str(spec), MISTRAL.replace("loop.first", "loop.last"), **named
    )
    assert training_samples(tokenizer, CONVERSATION, "here")
    with pytest.raises(DataError, match="here, turn 3: the chat template renders this answer otherwise"):
        training_samples(tokenizer, [system("S"), *CONVERSATION], "here")


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="here: no assistant turn"):
        training_samples(ours("smollm2"), [user("hi")], "here")


def test_described_tokens_spell_the_sample_and_mark_what_is_trained() -> None:
    tokenizer = ours("smollm2")
    [sample] = training_samples(tokenizer, [user("Hi 你好"), assistant("🙂 fox")], "here")
    described = describe_tokens(tokenizer, sample)
    assert "".join(text for text, _ in described) == tokenizer.decode(sample.ids, skip_special=False)
    assert "".join(text for text, trained in described if trained) == "🙂 fox<|im_end|>"


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=3)), max_size=8
    )
)
def test_joined_turns_change_role_every_time_and_lose_nothing(turns: list[tuple[Role, str]]) -> None:
    messages = [Message(role=role, content=content) for role, content in turns]
    joined = joined_turns(messages)
    assert all(a["role"] != b["role"] for a, b in itertools.pairwise(joined))
    assert joined_turns(joined) == joined
    assert "\n\n".join(m["content"] for m in joined) == "\n\n".join(m["content"] for m in messages)

"""The engine: batches change nothing, sampling is what it says, text comes out whole."""

from __future__ import annotations

import gc
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from nestling.errors import RequestError
from nestling.generation import sampler
from nestling.generation.engine import Engine
from nestling.generation.protocol import Completion, Request, Sampling
from nestling.generation.stops import StopScanner
from nestling.model.hf_folder import load_model, save_model
from nestling.model.layout import PackedLayout
from nestling.model.lora import add_lora, merge_lora
from nestling.model.packed import can_pack
from nestling.text.samples import training_samples
from nestling.training.sft import SFTConfig, train_sft
from nestling.workspace import EventLog
from tiny import tiny_model


def ask(text: str, **sampling: object) -> Request:
    return Request([{"role": "user", "content": text}], Sampling(**{"max_tokens": 20, **sampling}))


REQUESTS = [
    ask(f"tell me {'more ' * n}", temperature=t, seed=n)
    for n, t in enumerate([0.0, 1.0, 0.7, 1.3, 0.0, 1.0, 1.0])
]


def test_alone_equals_in_a_batch() -> None:
    model = tiny_model()
    together = Engine(model, max_batch=3, prefill_tokens=60).generate(REQUESTS)
    for request, completion in zip(REQUESTS, together, strict=True):
        alone = Engine(model).generate([request])[0]
        assert alone.token_ids == completion.token_ids and alone.text == completion.text
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-4)


def test_a_frozen_engine_keeps_nothing_of_the_model_it_was_made_of() -> None:
    """Weights are views of a mapped file: one of them would keep all of it in memory."""
    model = tiny_model(dtype=torch.bfloat16)
    if not can_pack(model.decoder):
        pytest.skip("this processor's torch packs no bf16 matrices")
    plain = [StorageWeakRef(p.untyped_storage()) for p in model.decoder.parameters()]
    expected = Engine(model).generate(REQUESTS[:2])
    engine = Engine(model, frozen=True)
    del model
    gc.collect()
    assert plain and all(storage.expired() for storage in plain)
    assert engine.generate(REQUESTS[:2]) == expected


def test_several_answers_to_one_prompt_equal_each_alone() -> None:
    model = tiny_model()
    texts = ["say red"] * 3 + ["say something much longer than that"] * 2 + ["say red"] * 2
    requests = [ask(text, temperature=1.0, seed=n) for n, text in enumerate(texts)]
    for size in (7, 4):  # one prefill, and groups that are let in by halves
        together = Engine(model, max_batch=size).generate(requests)
        for request, completion in zip(requests, together, strict=True):
            alone = Engine(model).generate([request])[0]
            assert alone.token_ids == completion.token_ids and alone.prompt_ids == completion.prompt_ids
            assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-4)
    assert len({completion.token_ids for completion in together}) > 3


def test_logprobs_are_those_of_the_training_forward() -> None:
    model = tiny_model()
    for temperature in (1.0, 0.7):
        done = Engine(model).generate([ask("hello", temperature=temperature, seed=5)])[0]
        ids = torch.tensor(done.prompt_ids + done.token_ids)
        hidden = model.decoder(ids, PackedLayout.from_lengths([len(ids)]))
        full = (model.decoder.logits(hidden) / temperature).log_softmax(-1)
        start = len(done.prompt_ids) - 1
        expected = [full[start + i, token].item() for i, token in enumerate(done.token_ids)]
        assert done.logprobs == pytest.approx(expected, abs=1e-4)


def test_greedy_follows_an_update_of_the_weights() -> None:
    """No stale cache or weights: greedy, change, greedy equals a fresh engine on the changed model."""
    model = tiny_model()
    engine = Engine(model)
    before = engine.generate([REQUESTS[0]])[0]
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    after = engine.generate([REQUESTS[0]])[0]
    assert after.token_ids != before.token_ids
    assert after == Engine(model).generate([REQUESTS[0]])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_after_training_is_that_of_the_model_saved_and_loaded(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(dtype=dtype)
    engine = Engine(model)
    before = engine.generate([REQUESTS[0]])[0]
    talk = [{"role": "user", "content": "tell me "}, {"role": "assistant", "content": "red and blue"}]
    samples = list(training_samples(model.tokenizer, talk, "here"))
    config = SFTConfig(
        learning_rate=3e-3, epochs=3, max_tokens=10**6, row_tokens=128, batch_tokens=128, validate_every=1
    )
    train_sft(model, samples, samples, config, tmp_path / "run", EventLog(tmp_path / "events"))
    after = engine.generate([REQUESTS[0]])[0]
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", model)
    fresh = Engine(load_model(tmp_path / "saved", dtype)).generate([REQUESTS[0]])[0]
    assert after.token_ids == fresh.token_ids != before.token_ids
    # In bf16 the last bits depend on where in memory a matrix begins, and a file's lie elsewhere.
    assert after.logprobs == pytest.approx(fresh.logprobs, abs=0 if dtype == torch.float32 else 1e-3)


def test_answers_are_those_of_a_model_with_adapters() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    add_lora(model.decoder.model, rank=4, alpha=8)
    plain = Engine(model).generate([ask("red", temperature=0, max_tokens=8)])[0]
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if "lora_b" in name:
                parameter.normal_(std=0.3)
    adapted = Engine(model).generate([ask("red", temperature=0, max_tokens=8)])[0]
    merge_lora(model.decoder)
    merged = Engine(model).generate([ask("red", temperature=0, max_tokens=8)])[0]
    assert adapted.token_ids == merged.token_ids != plain.token_ids


def test_the_end_token_ends_and_is_reported_but_not_shown() -> None:
    model = tiny_model(tie_embeddings=False)
    end = model.tokenizer.eos_id
    with (
        torch.no_grad()
    ):  # a model that always says the end token: blocks add nothing, channel 0 votes for it
        for block in model.decoder.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.decoder.model.embed_tokens.weight[:, 0] = 1.0
        model.decoder.lm_head.weight.zero_()
        model.decoder.lm_head.weight[end, 0] = 1.0
    done = Engine(model).generate([ask("hi", temperature=0.0)])[0]
    assert done.token_ids == (end,) and done.text == "" and done.finish_reason == "stop" and done.finished


def test_length_limit_and_counts() -> None:
    done = Engine(tiny_model()).generate([ask("hello", temperature=1.0, max_tokens=5, seed=1)])[0]
    assert done.completion_tokens == len(done.token_ids) <= 5
    assert done.prompt_tokens == len(done.prompt_ids)
    if done.completion_tokens == 5 and done.token_ids[-1] not in tiny_model().tokenizer.eos_ids:
        assert done.finish_reason == "length"


def test_streamed_pieces_join_to_the_whole_text() -> None:
    engine = Engine(tiny_model())
    for request in REQUESTS:
        chunks = list(engine.stream(request))
        assert "".join(c.text for c in chunks) == chunks[-1].completion.text
        assert engine.active == 0


def test_closing_a_stream_cancels_it() -> None:
    engine = Engine(tiny_model())
    stream = engine.stream(ask("hello", temperature=1.0, max_tokens=200))
    next(stream)
    assert engine.active == 1
    stream.close()
    assert engine.active == 0 and engine.step() == []


def test_cancelling_one_leaves_the_others_as_they_were() -> None:
    model = tiny_model()
    expected = Engine(model).generate([REQUESTS[1], REQUESTS[3]])
    engine = Engine(model)
    first, dropped, third = (engine.submit(r) for r in (REQUESTS[1], ask("x", max_tokens=100), REQUESTS[3]))
    done: dict[int, Completion] = {}
    for step in range(40):
        if step == 4:
            engine.cancel(dropped)
        done |= {e.ticket: e.completion for e in engine.step() if e.completion}
    assert [done[first].token_ids, done[third].token_ids] == [e.token_ids for e in expected]
    assert dropped not in done


def test_context_overflow_and_impossible_sampling_are_named() -> None:
    engine = Engine(tiny_model(), context_length=64)
    with pytest.raises(RequestError, match="exceed the context of 64 tokens"):
        engine.submit(ask("word " * 100))
    for name, value in [("temperature", -1), ("top_p", 0), ("min_p", 2), ("max_tokens", 0), ("top_k", -1)]:
        with pytest.raises(RequestError, match=name):
            engine.submit(ask("x", **{name: value}))


def test_a_stop_string_ends_the_answer_before_it() -> None:
    model = tiny_model()
    whole = Engine(model).generate([ask("hello", temperature=1.0, max_tokens=40, seed=3)])[0].text
    stop = whole[10:13]
    done = Engine(model).generate([ask("hello", temperature=1.0, max_tokens=40, seed=3, stop=(stop,))])[0]
    assert done.text == whole[: whole.index(stop)] and done.finish_reason == "stop"


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_stop_scanner_equals_searching_the_whole_text(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    scanner, shown, at = StopScanner(stops), "", 0
    while at < len(text) and not scanner.hit:
        size = data.draw(st.integers(1, 5))
        shown += scanner.push(text[at : at + size])
        at += size
    shown += scanner.flush()
    found = [text.find(s) for s in stops if s in text]
    if not found:
        assert shown == text and not scanner.hit
    else:
        # The first to be complete wins; it can never show beyond an earlier complete stop string.
        assert scanner.hit and text.startswith(shown)
        assert not any(s in shown for s in stops)


def test_uniform_numbers_are_uniform_and_independent_of_neighbours() -> None:
    numbers = [sampler.uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0 <= u < 1 for u in numbers)
    counts = Counter(int(u * 10) for u in numbers)
    assert all(abs(count - 1000) < 150 for count in counts.values())
    pairs = [(sampler.uniform(s, 0) - 0.5) * (sampler.uniform(s + 1, 0) - 0.5) for s in range(10_000)]
    assert abs(sum(pairs) / len(pairs)) < 0.003


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2]).repeat(4000, 1)
    randoms = torch.tensor([sampler.uniform(7, i) for i in range(4000)])
    counts = Counter(sampler.draw(probs, randoms).tolist())
    for token, p in enumerate(probs[0].tolist()):
        assert abs(counts[token] / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000) + 1e-9
    edge = torch.tensor([0.0, 1.0 - 2**-24])
    assert sampler.draw(torch.tensor([[0.0, 1.0, 0.0]] * 2), edge).tolist() == [1, 1]


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=12),
    st.integers(1, 12),
    st.floats(0.05, 1),
    st.floats(0, 0.9),
)
@settings(max_examples=200, deadline=None)
def test_truncation_keeps_the_most_likely_and_what_it_promises(
    weights: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    probs = torch.tensor(weights) / sum(weights)
    for settings_ in (Sampling(top_k=top_k), Sampling(top_p=top_p), Sampling(min_p=min_p)):
        kept = probs.clone()
        sampler.truncate(kept, settings_)
        assert kept[probs.argmax()] > 0
        assert kept[kept > 0].min() >= probs[kept == 0].max() if (kept == 0).any() else True
    kept = probs.clone()
    sampler.truncate(kept, Sampling(top_p=top_p))
    assert kept.sum() >= top_p - 1e-5
    kept = probs.clone()
    sampler.truncate(kept, Sampling(min_p=min_p))
    assert torch.equal(kept > 0, probs >= min_p * probs.max())


def test_repetition_penalty_lowers_what_was_said() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    sampler.penalise_repetition(logits, [0, 1, 1], 2.0)
    assert logits.tolist() == [1.0, -2.0, 0.5]


def test_seeds_repeat_and_differ() -> None:
    engine = Engine(tiny_model())
    same = engine.generate([ask("hi", temperature=1.0, seed=1), ask("hi", temperature=1.0, seed=1)])
    other = engine.generate([ask("hi", temperature=1.0, seed=2)])[0]
    assert same[0].token_ids == same[1].token_ids != other.token_ids
    assert len({sampler.derive_seed(1, i, j) for i in range(50) for j in range(50)}) == 2500


@given(st.integers(0, 2**31), st.sampled_from([7, 128, 640]), st.booleans())
def test_the_likeliest_token_is_the_first_of_the_largest(seed: int, size: int, coarse: bool) -> None:
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if coarse else logits  # ties
    assert sampler.likeliest(logits).tolist() == [row.tolist().index(row.max()) for row in logits]

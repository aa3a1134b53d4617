"""The network against ``transformers``, and what packing, caching and saving must not change."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nestling.errors import ModelError
from nestling.model import attention
from nestling.model.config import ModelConfig
from nestling.model.decoder import Decoder, initialise
from nestling.model.elementwise import gated, rms_norm, rotate
from nestling.model.heads import ScalarHead
from nestling.model.hf_folder import copy_decoder, load_model, save_model
from nestling.model.kv_cache import KVCache
from nestling.model.layout import PackedLayout
from nestling.model.lora import adapters_off, add_lora, merge_lora
from nestling.model.packed import PackedDecoder
from nestling.model.rows import common_prefix, pack_row
from nestling.model.scorer import Scorer, load_scorer, save_scorer
from nestling.model.vocabulary import token_logprobs, token_logprobs_and_entropy
from nestling.text.samples import TokenSample
from tiny import tiny_config, tiny_model

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-3.1": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}


def peer(name: str, **changes: Any) -> Any:
    """A random ``transformers`` model of a family, whose heads differ from its key/value heads."""
    family, extra = FAMILIES[name]
    sizes = {
        "vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 8,
        "num_key_value_heads": 2, "intermediate_size": 80, "max_position_embeddings": 256,
    }  # fmt: skip
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = transformers.AutoConfig.for_model(family, **sizes | tokens | extra | changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours_from(model: Any) -> Decoder:
    decoder = Decoder(ModelConfig.from_hf(model.config.to_dict(), "peer"))
    decoder.load_state_dict(model.state_dict())
    return decoder.eval()


def logits(decoder: Decoder, ids: torch.Tensor, *lengths: int) -> torch.Tensor:
    return decoder.logits(decoder(ids, PackedLayout.from_lengths(lengths or (len(ids),))))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name: str) -> None:
    theirs = peer(name)
    ids = torch.randint(0, 131, (150,))
    assert (theirs(ids[None]).logits[0] - logits(ours_from(theirs), ids)).abs().max() < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_the_network_for_inference_equal_transformers(name: str) -> None:
    theirs = peer(name)
    packed = PackedDecoder(ours_from(theirs))
    for tokens in (150, 20):  # many rows and few compute on other layouts of the weights
        ids = torch.randint(0, 131, (tokens,))
        with torch.inference_mode():
            mine = packed.logits(packed(ids, PackedLayout.from_lengths([tokens])))
        assert (theirs(ids[None]).logits[0] - mine).abs().max() < 1e-4


def test_conversion_to_bf16_keeps_positions_exact() -> None:
    decoder = tiny_model().decoder
    exact = decoder.model.rotary(torch.tensor([1000]), torch.float32)
    turned = decoder.to(torch.bfloat16).model.rotary(torch.tensor([1000]), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(turned, exact, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_folder_opens_in_transformers_and_64_greedy_tokens_agree(name: str, tmp_path: Path) -> None:
    model = tiny_model()
    decoder = ours_from(peer(name, vocab_size=model.tokenizer.vocab_size))
    model.decoder = decoder
    save_model(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again = load_model(tmp_path, torch.float32)
    assert again.config == decoder.config
    ids = torch.randint(4, 131, (11,))
    expected = theirs.generate(ids[None], max_new_tokens=64, do_sample=False, eos_token_id=None)[0].tolist()
    mine = ids.tolist()
    for _ in range(64):
        mine.append(int(logits(again.decoder, torch.tensor(mine))[-1].argmax()))
    assert mine == expected


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"'gpt_neox' is not supported.*llama, mistral"):
        ModelConfig.from_hf({"model_type": "gpt_neox"}, "config.json")
    raw = tiny_config(100).to_hf() | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    with pytest.raises(ModelError, match="'yarn' is not supported"):
        ModelConfig.from_hf(raw, "config.json")


def test_a_sliding_window_limits_the_context() -> None:
    raw = tiny_config(100, family="mistral").to_hf() | {"sliding_window": 128}
    assert ModelConfig.from_hf(raw, "x").context_length == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 40, "head_dim": 8}, "has shape"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"num_key_value_heads": 4}, "cannot share"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(
    change: dict[str, int], message: str, tmp_path: Path
) -> None:
    save_model(tmp_path, tiny_model())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path, torch.float32)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_config_that_does_not_say_whether_embeddings_are_tied(family: str) -> None:
    theirs = transformers.AutoConfig.for_model(family)
    raw = {key: value for key, value in theirs.to_dict().items() if key != "tie_word_embeddings"}
    assert ModelConfig.from_hf(raw, "x").tie_embeddings == theirs.tie_word_embeddings


def test_missing_truncated_and_pickled_weights_are_named(tmp_path: Path) -> None:
    save_model(tmp_path, tiny_model())
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_model(tmp_path, torch.float32)
    weights.unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        load_model(tmp_path, torch.float32)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="can run code"):
        load_model(tmp_path, torch.float32)


def test_sharded_weights_load_and_an_index_cannot_leave_the_folder(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(tmp_path, model)
    tensors = {n: t.clone() for n, t in model.decoder.state_dict().items() if n != "lm_head.weight"}
    (tmp_path / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"part-{number}.safetensors")
    index = {name: f"part-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    ids = torch.arange(10, 30)
    assert torch.equal(logits(load_model(tmp_path, torch.float32).decoder, ids), logits(model.decoder, ids))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../part-0.safetensors"}})
    )
    with pytest.raises(ModelError, match="outside the folder"):
        load_model(tmp_path, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [[(0, [7])], [(0, [7]), (0, [2]), (0, [6])], [(3, [4, 2, 9]), (5, [1])]])
def test_our_attention_has_the_results_and_gradients_of_the_fused_one(
    dtype: torch.dtype, groups: list[tuple[int, list[int]]]
) -> None:
    layout = PackedLayout.shared_prefix(groups)
    total = len(layout.positions)
    mine = [torch.randn(total, heads, 4, dtype=dtype, requires_grad=True) for heads in (6, 2, 2)]
    theirs = [t.detach().clone().requires_grad_() for t in mine]
    out = layout.attend(0, *mine)
    fused = torch.zeros_like(out)
    start = 0
    for prefix, completions in groups:
        end = start + prefix
        for length in completions:
            rows = [*range(start, start + prefix), *range(end, end + length)]
            alone = torch.nn.functional.scaled_dot_product_attention(
                *(t[rows].transpose(0, 1)[None] for t in theirs), is_causal=True, enable_gqa=True
            )
            fused = fused.index_copy(0, torch.tensor(rows), alone[0].transpose(0, 1))
            end += length
        start = end
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (fused * weight).sum().backward()
    assert torch.allclose(out, fused, atol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_our_norm_and_rotation_have_the_gradients_of_autograd(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(8, dtype=dtype, requires_grad=True)
    angles = torch.randn(5, 1, 4, dtype=torch.float64).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slope = torch.randn_like(x)
    signed = torch.cat([-sin[..., :4], sin[..., 4:]], -1)
    (rotate(rms_norm(x, weight, 1e-5), cos, signed) * slope).sum().backward()
    a, w = (t.detach().double().requires_grad_() for t in (x, weight))
    unit = torch.nn.functional.rms_norm(a, (8,), w, 1e-5)
    turned = unit * cos.double() + torch.cat([-unit[..., 4:], unit[..., :4]], -1) * sin.double()
    (turned * slope.double()).sum().backward()
    tolerance = 1e-6 if dtype == torch.float64 else 0.06
    assert torch.allclose(x.grad.double(), a.grad, atol=tolerance, rtol=tolerance)
    assert torch.allclose(weight.grad.double(), w.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gated_activation_has_the_result_and_gradients_of_autograd(dtype: torch.dtype) -> None:
    gate, up = (torch.randn(5, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    slope = torch.randn(5, 8, dtype=dtype)
    out = gated(gate, up)
    (out * slope).sum().backward()
    with torch.no_grad():
        assert torch.equal(out, gated(gate, up))
    a, b = (t.detach().double().requires_grad_() for t in (gate, up))
    (torch.nn.functional.silu(a) * b * slope.double()).sum().backward()
    tolerance = 1e-9 if dtype == torch.float64 else 0.06
    for own, exact in ((gate.grad, a.grad), (up.grad, b.grad)):
        assert torch.allclose(own.double(), exact, atol=tolerance, rtol=tolerance)


def test_probabilities_kept_or_computed_again_give_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, found = torch.arange(10, 50), []
    for limit in (0, 1000):
        monkeypatch.setattr(attention, "KEEP_UP_TO", limit)
        decoder = tiny_model().decoder
        logits(decoder, ids, 25, 15).square().mean().backward()
        found.append([p.grad for p in decoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_packed_sequences_do_not_see_each_other(lengths: list[int]) -> None:
    decoder = tiny_model().decoder
    ids = torch.randint(0, 300, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    packed = logits(decoder, ids, *lengths).split(lengths)
    for own, part in zip(ids.split(lengths), packed, strict=True):
        assert torch.allclose(logits(decoder, own), part, atol=1e-5)


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=5), st.integers(0, 8)
)
def test_common_prefix(sequences: list[list[int]], limit: int) -> None:
    found = common_prefix(sequences, [limit])
    assert all(s[:found] == sequences[0][:found] for s in sequences)
    most = min(limit, *(len(s) - 1 for s in sequences)) if len(sequences) > 1 else 0
    assert found == most or len({s[found] for s in sequences}) > 1


@pytest.mark.parametrize("prefix", [1, 6])
def test_what_samples_share_is_computed_once_and_changes_nothing(prefix: int) -> None:
    decoder = tiny_model().decoder
    rest = [torch.arange(40 + 9 * n, 40 + 9 * n + length).tolist() for n, length in enumerate((5, 2, 7, 4))]
    samples = [
        TokenSample(
            [*range(20, 20 + prefix), *own], [False] * prefix + [n > 0 or k % 2 > 0 for k in range(len(own))]
        )
        for n, own in enumerate(rest)
    ]
    results = []
    for parts in ([samples], [[s] for s in samples]):
        decoder.zero_grad()
        rows = [pack_row(part, torch.device("cpu")) for part in parts]
        logprobs = torch.cat(
            [
                token_logprobs(decoder(r.ids, r.layout)[r.predictors], decoder.lm_head.weight, r.targets)
                for r in rows
            ]
        )
        (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])
        results.append((logprobs, gradients, sum(len(r.ids) for r in rows)))
    (packed, packed_gradients, fewer), (alone, gradients, tokens) = results
    assert fewer == tokens - 3 * prefix
    assert torch.allclose(packed, alone, atol=1e-5)
    assert torch.allclose(packed_gradients, gradients, atol=1e-4)


def test_candidates_that_share_a_prompt_score_as_if_alone_gradients_too() -> None:
    """K = 4 in one pass equals four separate forwards."""
    decoder = tiny_model().decoder
    prompt, completions = torch.arange(20, 31), [torch.arange(40, 40 + n) for n in (5, 7, 1, 3)]
    head = torch.linspace(-1, 1, 48)
    packed = decoder(
        torch.cat([prompt, *completions]), PackedLayout.shared_prefix([(11, [len(c) for c in completions])])
    )
    last = torch.tensor([len(c) for c in completions]).cumsum(0) + 11 - 1
    together = packed[last] @ head
    (together * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum().backward()
    gradients = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    alone = torch.stack(
        [
            decoder(torch.cat([prompt, c]), PackedLayout.from_lengths([11 + len(c)]))[-1] @ head
            for c in completions
        ]
    )
    (alone * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum().backward()
    assert torch.allclose(together, alone, atol=1e-5)
    for name, parameter in decoder.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-4), name


def test_cached_decoding_equals_the_full_forward_while_rows_come_and_go() -> None:
    decoder = tiny_model().decoder
    cache = KVCache(decoder.config, torch.float32, torch.device("cpu"))
    texts = [list(range(20, 20 + n)) for n in (5, 130, 9)]
    with torch.inference_mode():
        decoder(
            torch.tensor(functools.reduce(operator.iadd, texts, [])), cache.prefill([len(t) for t in texts])
        )
        rows = [0, 1, 2]
        for token in range(50, 60):
            if token == 53:  # row 0 leaves, the last one moves into its place
                assert cache.remove(0) == 2
                rows = [2, 1]
            if token == 56:
                texts.append(list(range(100, 117)))
                decoder(torch.tensor(texts[3]), cache.prefill([17]))
                rows.append(3)
            out = decoder.logits(decoder(torch.tensor([token + r for r in rows]), cache.decode()))
            for place, row in enumerate(rows):
                texts[row].append(token + row)
                assert torch.allclose(out[place], logits(decoder, torch.tensor(texts[row]))[-1], atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_their_gradients_equal_plain_log_softmax(temperature: float) -> None:
    hidden = torch.randn(600, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (600,))
    scale = torch.randn(600)
    logprobs, entropy = token_logprobs_and_entropy(hidden, weight, targets, temperature)
    (logprobs * scale).sum().backward()
    mine = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    full = (hidden @ weight.T / temperature).log_softmax(-1)
    plain = full.gather(-1, targets[:, None])[:, 0]
    (plain * scale).sum().backward()
    assert torch.allclose(logprobs, plain, atol=1e-5)
    assert torch.equal(token_logprobs(hidden, weight, targets, temperature), logprobs)
    assert torch.allclose(entropy, -(full.exp() * full).sum(-1), atol=1e-4)
    assert torch.allclose(mine[0], hidden.grad, atol=1e-4) and torch.allclose(mine[1], weight.grad, atol=1e-3)


def test_lora_starts_as_the_base_switches_off_and_merges() -> None:
    decoder = tiny_model().decoder
    ids = torch.arange(20, 60)
    base = logits(decoder, ids)
    add_lora(decoder.model, rank=4, alpha=8)
    assert torch.equal(logits(decoder, ids), base)
    trained = {n for n, p in decoder.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    for name, parameter in decoder.named_parameters():
        if "lora_b" in name:
            with torch.no_grad():
                parameter.normal_(0, 0.1)
    adapted = logits(decoder, ids)
    assert not torch.allclose(adapted, base, atol=1e-2)
    with adapters_off(decoder):
        assert torch.equal(logits(decoder, ids), base)
    merge_lora(decoder)
    assert torch.allclose(logits(decoder, ids), adapted, atol=1e-4)
    assert set(dict(decoder.named_parameters())) == set(dict(tiny_model().decoder.named_parameters()))


def test_a_copy_is_frozen_and_does_not_follow() -> None:
    decoder = tiny_model().decoder
    twin = copy_decoder(decoder)
    ids = torch.arange(20, 40)
    before = logits(twin, ids)
    with torch.no_grad():
        decoder.model.norm.weight.mul_(2)
    assert torch.equal(logits(twin, ids), before) and not any(p.requires_grad for p in twin.parameters())


def test_scalar_head_fit_is_ridge_regression() -> None:
    hidden = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    target = hidden @ torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0, 3.0]) + 5
    head = ScalarHead(6, bias=True)
    head.fit(hidden, target, ridge=1e-6)
    assert torch.allclose(head(hidden), target, atol=1e-3)


def test_a_saved_reward_model_opens_here_and_in_transformers(tmp_path: Path) -> None:
    model = tiny_model()
    scorer = Scorer(model.decoder, model.tokenizer)
    with torch.no_grad():
        scorer.head.weight.normal_(0, 1)
    scorer.mean, scorer.std = 0.5, 2.0
    save_scorer(tmp_path, scorer)
    ids = torch.arange(20, 50)
    raw = scorer(ids, PackedLayout.from_lengths([30]), torch.tensor([29]))
    again = load_scorer(tmp_path, torch.float32)
    assert torch.allclose(again(ids, PackedLayout.from_lengths([30]), torch.tensor([29])), raw, atol=1e-5)
    assert torch.allclose(again.normalise(raw), (raw - 0.5) / 2)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.allclose(theirs(ids[None]).logits[0], raw, atol=1e-4)
    (tmp_path / "plain").mkdir()
    save_model(tmp_path / "plain", model)
    with pytest.raises(ModelError, match="no scalar head"):
        load_scorer(tmp_path / "plain", torch.float32)


def test_initialise_is_repeatable() -> None:
    a, b = (initialise(Decoder(tiny_config(50)), 3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

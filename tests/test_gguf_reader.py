"""Reading GGUF: every stored type, rope scalings, the real base, and files that are damaged or hostile."""

from __future__ import annotations

import hashlib
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.integrations.gguf.dequant import GGML_BLOCK
from transformers.integrations.gguf.dequant import dequantize as transformers_dequantize
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from gguf_support import real_base, rewrite, write_model
from nestling.errors import ModelError
from nestling.model import gguf_reader
from nestling.model.config import ModelConfig
from nestling.model.gguf_header import read_header
from nestling.model.gguf_layout import config_with_divisors, rope_divisors, rows_in_halves, rows_in_pairs
from nestling.model.gguf_reader import READABLE, read_gguf
from nestling.model.gguf_writer import export_gguf

torch.set_num_threads(1)

# Of all the base's tensors as transformers' own GGUF loader gives them: test_base_equals_transformers.
BASE_SHA256 = "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama as GGUF, f32."""
    folder = tmp_path_factory.mktemp("small")
    export_gguf(write_model(folder / "model", "llama"), folder / "model.gguf", "f32")
    return folder / "model.gguf"


# -- the base ------------------------------------------------------------------------------------------------


def test_base_has_the_known_shape_and_weights() -> None:
    model = read_gguf(real_base())
    config = ModelConfig.from_hf(model.config, "base")
    assert (config.family, config.num_layers, config.hidden_size, config.num_heads) == ("llama", 30, 576, 9)
    assert (config.num_kv_heads, config.intermediate_size, config.vocab_size) == (3, 1536, 49152)
    assert (config.context_length, config.rope_theta, config.rms_norm_eps) == (8192, 1e5, 1e-5)
    assert config.tie_embeddings and config.rope_scaling is None
    assert (model.config["bos_token_id"], model.config["eos_token_id"], model.config["pad_token_id"]) == (
        1,
        2,
        2,
    )
    assert _digest(model.tensors) == BASE_SHA256


@pytest.mark.slow
def test_base_equals_transformers() -> None:
    path = real_base()
    model = read_gguf(path)
    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**model.config))
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=network)["tensors"]
    assert theirs.keys() == model.tensors.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.tensors.items())
    assert _digest(theirs) == BASE_SHA256

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (
        "Hello, world! It's me.",
        "naïve 漢字 🙂👍🏽\t\n\n  x  ",
        "def f(x):\n    return x",
        " \u3000\u200b é e\u0301",
    ):
        # Not with numbers: transformers leaves out that this vocabulary cuts before every digit.
        assert model.tokenizer.encode(text) == tokenizer(text).input_ids


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


# -- stored types and orders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READABLE)
def test_every_stored_type(kind: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reader, "CHUNK_VALUES", 512)  # several chunks, the last one shorter
    quant = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[quant]
    rows, columns = 9, 256
    raw = np.random.default_rng(0).integers(0, 256, (rows * columns // block, block_bytes), np.uint8)
    raw[raw == 0x7F] = 0x3F  # no infinite or absent numbers among the scales
    raw[raw == 0xFF] = 0x3F
    raw[:, 1::2][raw[:, 1::2] & 0x7C == 0x7C] = 0x3C
    config = {"llama.embedding_length": 256, "llama.feed_forward_length": 9}
    widths = _resized(small, width=columns, hidden=rows)
    widths["blk.0.ffn_gate.weight"] = (raw.tobytes(), (rows, columns), quant)
    path = rewrite(small, tmp_path / "m.gguf", config, widths)
    found = read_gguf(path).tensors["model.layers.0.mlp.gate_proj.weight"]
    if quant in GGML_BLOCK:
        expected = transformers_dequantize(torch.from_numpy(raw).flatten()[None], int(quant)).flatten()
    else:
        expected = torch.from_numpy(dequantize(raw.flatten(), quant).astype(np.float32))
    assert found.shape == (rows, columns) and found.dtype == torch.float32
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-6, atol=0)


def _resized(path: Path, width: int, hidden: int) -> dict[str, np.ndarray]:
    """Zeros for every tensor of ``path`` in another width and MLP width."""
    old_width, old_hidden = 72, 96
    sizes = {old_width: width, old_hidden: hidden}
    tensors = {}
    for name, info in read_header(path).tensors.items():
        shape = tuple(sizes.get(size, size) for size in info.shape)
        if "attn_" in name and len(shape) == 2:  # 6 heads of 16 are as wide as the old MLP
            q = info.shape[0] if "output" not in name else info.shape[1]
            shape = (q, width) if "output" not in name else (width, q)
        tensors[name] = np.zeros(shape, np.float32)
    return tensors


@given(heads=st.integers(1, 8), half=st.integers(1, 16), columns=st.integers(0, 5))
def test_row_orders_are_inverse(heads: int, half: int, columns: int) -> None:
    shape = (heads * half * 2, columns) if columns else (heads * half * 2,)
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    pairs = rows_in_pairs(rows, heads)
    assert np.array_equal(rows_in_halves(pairs, heads), rows)
    assert np.array_equal(pairs[:2], rows[[0, half]])  # the two rows of a rotary pair are neighbours


# -- rope scaling --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    factor=st.sampled_from([2.0, 4.0, 8.0, 32.0]),
    low=st.sampled_from([1.0, 2.0]),
    ratio=st.sampled_from([4.0, 8.0, 16.0]),
    original=st.sampled_from([1024, 4096, 8192, 16384]),
    head_dim=st.sampled_from([64, 128]),
    theta=st.sampled_from([1e5, 5e5]),
)
def test_llama3_scaling_is_found_from_its_divisors(
    factor: float, low: float, ratio: float, original: int, head_dim: int, theta: float
) -> None:
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": low * ratio,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    plain = ModelConfig("llama", 10, 256, 1, 2, 1, head_dim, 8, 131072, rope_theta=theta)
    scaled = ModelConfig(
        "llama", 10, 256, 1, 2, 1, head_dim, 8, 131072, rope_theta=theta, rope_scaling=scaling
    )
    found = config_with_divisors(plain, rope_divisors(scaled))
    assert found is not None and found.rope_scaling is not None
    torch.testing.assert_close(rope_divisors(found), rope_divisors(scaled), rtol=1e-5, atol=0)
    if low == 1:
        assert found.rope_scaling == scaling


def test_divisors_that_are_not_llama3s_are_refused(small: Path, tmp_path: Path) -> None:
    divisors = np.array([1, 2, 1, 4, 1, 8, 1, 3], np.float32)
    path = rewrite(small, tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ModelError, match=r"rope_freqs.*other than Llama 3"):
        read_gguf(path)


def test_linear_and_unknown_scaling(small: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    linear = read_gguf(rewrite(small, tmp_path / "linear.gguf", keys))
    assert linear.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(ModelError, match="yarn"):
        read_gguf(rewrite(small, tmp_path / "yarn.gguf", keys | {"llama.rope.scaling.type": "yarn"}))


# -- files that cannot be used -------------------------------------------------------------------------------

IQ = (bytes(24 * GGML_QUANT_SIZES[GGMLQuantizationType.IQ4_NL][1]), (24, 32), GGMLQuantizationType.IQ4_NL)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.architecture": "gemma3"}, {}, "architecture 'gemma3' is not supported"),
        ({"llama.block_count": None}, {}, "'llama.block_count' is missing"),
        ({"llama.block_count": 10**9}, {}, "layers cannot come in"),
        ({"llama.attention.head_count_kv": 4}, {}, "6 heads cannot share 4"),
        ({"llama.rope.dimension_count": 8}, {}, "rope.dimension_count 8 differs from the head size 16"),
        ({"llama.expert_count": 8}, {}, "mixtures of experts"),
        ({"split.count": 3}, {}, "one part of a split model"),
        ({"tokenizer.ggml.pre": "falcon"}, {}, "pre-tokenizer 'falcon' is unknown"),
        ({"tokenizer.ggml.pre": None}, {}, "does not name its pre-tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, {}, "tokenizer kind 'bert'"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, {}, "eos_token_id is 1000000"),
        ({"tokenizer.ggml.merges": ["a b c", "qqq zzz"]}, {}, "does not fit together"),
        ({"tokenizer.ggml.token_type": [1, 1]}, {}, "token_type has 2 entries"),
        ({}, {"blk.1.attn_k.weight": None}, "'blk.1.attn_k.weight' is missing"),
        ({}, {"blk.1.attn_k.weight": np.zeros((32, 71))}, r"'blk.1.attn_k.weight' has shape \[32, 71\]"),
        ({}, {"blk.1.attn_k.weight": IQ}, "'blk.1.attn_k.weight' is stored as IQ4_NL"),
        ({}, {"blk.1.ffn_gate_inp.weight": np.zeros((4, 4))}, "'blk.1.ffn_gate_inp.weight' belongs to no"),
        ({}, {"token_embd.weight": np.zeros((20, 72))}, "do not fit 20 embedding rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(
    metadata: dict[str, Any], tensors: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    path = rewrite(small, tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(ModelError, match=message) as refusal:
        read_gguf(path)
    assert str(path) in str(refusal.value)


def test_no_gguf_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(ModelError, match="no such file"):
        read_gguf(path)
    for content, message in ((b"", "empty"), (b"GG", "has 2"), (b"PK\x03\x04 a zip", "not a GGUF file")):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(16))
    with pytest.raises(ModelError, match="byte order"):
        read_gguf(path)


def test_truncated_anywhere(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    path = tmp_path / "m.gguf"
    header_end = min(info.start for info in read_header(small).tensors.values())
    for end in [*range(5, header_end, header_end // 40), header_end, len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(ModelError, match="damaged or incomplete"):
            read_gguf(path)


def test_cut_off_after_opening(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small.read_bytes())
    model = read_gguf(path)
    path.write_bytes(small.read_bytes()[:-100_000])
    with pytest.raises(ModelError, match="ended while it was read"):
        _digest(model.tensors)


def _key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def _header(
    keys: list[bytes], tensors: list[bytes], key_count: int | None = None, tensor_count: int | None = None
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(keys) + b"".join(tensors)


def _tensor(dimensions: list[int], kind: int = 0, offset: int = 0, count: int | None = None) -> bytes:
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return struct.pack("<Q1sI", 1, b"t", count or len(dimensions)) + sizes + struct.pack("<IQ", kind, offset)


HUGE = 2**63 - 1
HOSTILE = {
    "keys": _header([], [], key_count=HUGE),
    "tensors": _header([], [], tensor_count=HUGE),
    "string": _header([_key("a", 8, struct.pack("<Q", HUGE))], []),
    "name": _header([struct.pack("<Q", HUGE)], []),
    "bytes": _header([_key("a", 9, struct.pack("<IQ", 0, HUGE))], []),
    "strings": _header([_key("a", 9, struct.pack("<IQ", 8, HUGE))], []),
    "empty strings": _header([_key("a", 9, struct.pack("<IQ", 8, 2**32) + bytes(800))], []),
    "nested": _header([_key("a", 9, struct.pack("<IQ", 9, HUGE) + struct.pack("<IQ", 9, HUGE) * 5000)], []),
    "value type": _header([_key("a", 99, b"")], []),
    "twice": _header([_key("a", 0, b"1"), _key("a", 0, b"1")], []),
    "not text": _header([_key("a", 8, struct.pack("<Q", 2) + b"\xff\xff")], []),
    "alignment": _header([_key("general.alignment", 4, struct.pack("<I", 0))], []),
    "dimensions": _header([], [_tensor([4], count=10**9)]),
    "shape": _header([], [_tensor([2**32, 2**32])]),
    "negative": _header([], [_tensor([2**64 - 1])]),
    "zero": _header([], [_tensor([0, 5])]),
    "offset": _header([], [_tensor([4], offset=2**63)]),
    "tensor type": _header([], [_tensor([4], kind=200)]),
    "half a block": _header([], [_tensor([33], kind=8)]),
    "same tensor": _header([], [_tensor([1]), _tensor([1])]) + bytes(64),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_costs_nothing(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[what])
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(ModelError):
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and time.monotonic() - began < 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_gives_a_plain_error_or_a_model(
    data: st.DataObject, small: Path, tmp_path: Path
) -> None:
    content = bytearray(small.read_bytes())
    header_end = min(info.start for info in read_header(small).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(4, header_end - 1))
        content[position] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, content[position] ^ 1]))
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    try:
        _digest(read_gguf(path).tensors)
    except ModelError as error:
        assert error.where

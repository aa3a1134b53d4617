"""Models in llama.cpp's GGUF format, read as a Hugging Face config, named tensors and a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf.quants import dequantize
from torch import Tensor

from nestling.errors import ModelError
from nestling.model.config import ModelConfig
from nestling.model.gguf_header import READ_AGAIN, Header, TensorInfo, read_header
from nestling.model.gguf_layout import (
    ARCHITECTURES,
    ROPE_DIVISORS,
    Place,
    config_with_divisors,
    rows_in_halves,
    tensor_places,
)
from nestling.model.gguf_tokenizer import tokenizer_from_gguf
from nestling.text.tokenizer import Tokenizer

T = TypeVar("T")

READABLE = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
CHUNK_VALUES = 1 << 22  # values dequantized at once: 16 MiB of fp32


@dataclass(frozen=True)
class GGUFModel:
    """A model file, opened. ``config`` is what config.json would hold; ``tensors`` are read on access."""

    config: dict[str, Any]
    tensors: GGUFTensors
    tokenizer: Tokenizer


class GGUFTensors(Mapping[str, Tensor]):
    """The weights under their Hugging Face names, each read and dequantized to fp32 on access, none kept."""

    def __init__(self, path: Path, sources: dict[str, tuple[TensorInfo, Place]]) -> None:
        self._path, self._sources = path, sources

    def __getitem__(self, name: str) -> Tensor:
        info, place = self._sources[name]
        values = _read_values(self._path, info)
        if place.paired_heads:
            values = rows_in_halves(values, place.paired_heads)
        return torch.from_numpy(np.ascontiguousarray(values))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def read_gguf(path: Path | str) -> GGUFModel:
    """Open a GGUF file of architecture llama (also Mistral's shape), qwen2 or qwen3.

    The header is read and checked at once, weights only when asked for.

    Raises:
        ModelError: naming the file, the tensor or key that is wrong, and the remedy.
    """
    path = Path(path)
    header = read_header(path)
    where = str(path)
    config = _with_llama3_scaling(_config(header, where), path, header)
    tokenizer = tokenizer_from_gguf(header.metadata, config.vocab_size, where)
    return GGUFModel(
        config=config.to_hf() | _special_ids(header.metadata),
        tensors=GGUFTensors(path, _sources(header, config, where)),
        tokenizer=tokenizer,
    )


class _Metadata:
    """The keys of one architecture, checked as they are asked for."""

    def __init__(self, header: Header, where: str) -> None:
        self.values, self.where = header.metadata, where
        self.architecture = str(self.values.get("general.architecture"))
        if self.architecture not in ARCHITECTURES.values():
            remedy = f"Supported: {', '.join(dict.fromkeys(ARCHITECTURES.values()))}."
            raise ModelError(
                f"architecture {self.architecture!r} is not supported.", where=where, remedy=remedy
            )

    def integer(self, key: str, default: int | None = None) -> int:
        return self._get(key, int, default)

    def real(self, key: str, default: float | None = None) -> float:
        # Written as fp32, 1e-05 becomes 9.99999975e-06. Its shortest spelling is the one meant.
        return float(str(np.float32(self._get(key, float, default))))

    def text(self, key: str, default: str) -> str:
        return self._get(key, str, default)

    def _get(self, key: str, kind: type[T], default: T | None) -> T:
        key = f"{self.architecture}.{key}"
        value = self.values.get(key, default)
        if type(value) is not kind:
            what = "missing" if value is None else repr(value)
            raise ModelError(f"metadata key {key!r} is {what}.", where=self.where, remedy=READ_AGAIN)
        return value


def _config(header: Header, where: str) -> ModelConfig:
    """Read the network's shape and refuse what it cannot do."""
    metadata = _Metadata(header, where)
    parts = header.metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        remedy = "Join the parts with `llama-gguf-split --merge`."
        raise ModelError("this is one part of a split model.", where=where, remedy=remedy)
    if metadata.integer("expert_count", 0):
        raise ModelError(
            "mixtures of experts are not supported.", where=where, remedy="Choose a dense model."
        )
    width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    head_dim = metadata.integer("attention.key_length", width // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.integer(key, head_dim) != head_dim:
            what = f"{key} {metadata.integer(key)} differs from the head size {head_dim}."
            raise ModelError(what, where=where, remedy="Choose a model of plain Llama, Qwen2 or Qwen3 shape.")
    layers = metadata.integer("block_count")
    if layers > len(header.tensors):
        what = f"{layers} layers cannot come in {len(header.tensors)} tensors."
        raise ModelError(what, where=where, remedy=READ_AGAIN)
    config = ModelConfig(
        family=metadata.architecture,
        vocab_size=_shape(header, "token_embd.weight", where)[0],
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=metadata.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=metadata.integer("feed_forward_length"),
        context_length=metadata.integer("context_length"),
        rms_norm_eps=metadata.real("attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.real("rope.freq_base", 10000.0),
        rope_scaling=_linear_scaling(metadata),
        tie_embeddings="output.weight" not in header.tensors,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        output_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
        qk_norm=metadata.architecture == "qwen3",
    )
    config.check({}, where)
    return config


def _linear_scaling(metadata: _Metadata) -> dict[str, Any] | None:
    factor = metadata.real("rope.scaling.factor", metadata.real("rope.scale_linear", 1.0))
    kind = metadata.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        remedy = "Supported: none, linear, Llama 3's."
        raise ModelError(f"rope scaling {kind!r} is not supported.", where=metadata.where, remedy=remedy)
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor not in (0, 1) else None


def _with_llama3_scaling(config: ModelConfig, path: Path, header: Header) -> ModelConfig:
    """Llama 3's scaling is not in the metadata but in a tensor of divisors."""
    if ROPE_DIVISORS not in header.tensors:
        return config
    scaled = None
    if (
        config.rope_scaling is None
        and ARCHITECTURES[config.family] == "llama"
        and _shape(header, ROPE_DIVISORS, str(path)) == (config.head_dim // 2,)
    ):
        divisors = torch.from_numpy(_read_values(path, header.tensors[ROPE_DIVISORS]))
        scaled = config_with_divisors(config, divisors)
    if scaled is None:
        what = f"tensor {ROPE_DIVISORS!r} holds a rope scaling other than Llama 3's."
        raise ModelError(what, where=str(path), remedy="Choose a model without it.")
    return scaled


def _sources(header: Header, config: ModelConfig, where: str) -> dict[str, tuple[TensorInfo, Place]]:
    """Match what the file has with what the network needs."""
    places = tensor_places(config)
    for name, place in places.items():
        if _shape(header, name, where) != place.shape:
            raise ModelError(
                f"tensor {name!r} has shape {list(header.tensors[name].shape)}, "
                f"the metadata says {list(place.shape)}.",
                where=where,
                remedy=READ_AGAIN,
            )
    for name in header.tensors.keys() - places.keys() - {ROPE_DIVISORS}:
        remedy = "Choose a model of plain Llama, Qwen2 or Qwen3 shape."
        raise ModelError(f"tensor {name!r} belongs to no network we know.", where=where, remedy=remedy)
    return {place.name: (header.tensors[name], place) for name, place in places.items()}


def _shape(header: Header, name: str, where: str) -> tuple[int, ...]:
    info = header.tensors.get(name)
    if info is None:
        raise ModelError(f"tensor {name!r} is missing.", where=where, remedy=READ_AGAIN)
    if info.kind.name not in READABLE:
        remedy = f"Get the model in one of {', '.join(READABLE)}."
        raise ModelError(f"tensor {name!r} is stored as {info.kind.name}.", where=where, remedy=remedy)
    return info.shape


def _read_values(path: Path, info: TensorInfo) -> np.ndarray:
    """Read one tensor as fp32, a chunk at a time so that little more than the result is in memory."""
    values = np.empty(prod(info.shape), np.float32)
    block, block_bytes = GGML_QUANT_SIZES[info.kind]
    with path.open("rb") as file:
        file.seek(info.start)
        for first in range(0, values.size, CHUNK_VALUES):
            chunk = values[first : first + CHUNK_VALUES]
            wanted = chunk.size // block * block_bytes
            raw = np.frombuffer(file.read(wanted), np.uint8)
            if raw.size < wanted:
                raise ModelError("the file ended while it was read.", where=str(path), remedy=READ_AGAIN)
            chunk[:] = dequantize(raw, info.kind)
    return values.reshape(info.shape)


def _special_ids(metadata: dict[str, Any]) -> dict[str, Any]:
    """Token ids as config.json names them; several end tokens make a list, the main one first."""
    key = "tokenizer.ggml.{}_token_id"
    ends = [metadata[key.format(name)] for name in ("eos", "eot", "eom") if key.format(name) in metadata]
    ends = list(dict.fromkeys(ends))
    return {
        "bos_token_id": metadata.get(key.format("bos")),
        "eos_token_id": ends if len(ends) > 1 else (ends or [None])[0],
        "pad_token_id": metadata.get(key.format("padding")),
    }

"""Model folders written as GGUF, the format of llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
)
from gguf.quants import quantize
from torch import Tensor

from nestling.errors import ModelError
from nestling.model.config import ModelConfig
from nestling.model.gguf_layout import (
    ARCHITECTURES,
    ROPE_DIVISORS,
    Place,
    rope_divisors,
    rows_in_pairs,
    tensor_places,
)
from nestling.model.gguf_tokenizer import write_tokenizer
from nestling.model.hf_folder import read_config, read_tensors
from nestling.text.files import optional_json
from nestling.text.tokenizer import Tokenizer
from nestling.workspace import atomic

DTYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


@dataclass(frozen=True)
class _Slot:
    """Where a tensor is stored and how; ``offset`` is its first byte, counted from the start of the data."""

    gguf_name: str
    place: Place
    kind: GGMLQuantizationType
    offset: int

    @property
    def nbytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return prod(self.place.shape) // block * block_bytes


def export_gguf(folder: Path | str, out: Path | str, dtype: str = "f16", name: str | None = None) -> None:
    """Write a Hugging Face model folder as one GGUF file that llama.cpp loads.

    Matrices are stored as ``dtype``, vectors as f32. ``out`` is there whole or not at all. Memory holds one
    tensor at a time.

    Args:
        folder: a Llama, Mistral, Qwen2 or Qwen3 model with its tokenizer.
        out: the file to write; an existing one is replaced.
        dtype: f32, f16, bf16 or q8_0.
        name: what the file calls the model; the folder's name by default.

    Raises:
        ModelError: the folder cannot be read, or holds something GGUF cannot express exactly.
        WorkspaceError: ``out`` cannot be written.
    """
    folder, out = Path(folder), Path(out)
    if dtype not in DTYPES:
        raise ModelError(
            f"dtype {dtype!r} is unknown.", where=str(out), remedy=f"Use one of {', '.join(DTYPES)}."
        )
    config, tokenizer = read_config(folder), Tokenizer.load(folder)
    _refuse_what_llama_cpp_lacks(config, str(folder))
    slots = _slots(config, DTYPES[dtype][0])
    with atomic.new_file(out) as partial:
        writer = GGUFWriter(partial, ARCHITECTURES[config.family])
        writer.add_type("model")
        writer.add_name(name or folder.resolve().name)
        writer.add_file_type(DTYPES[dtype][1])
        writer.add_quantization_version(2)
        _write_config(writer, config)
        write_tokenizer(writer, tokenizer, _bos_token(folder), config.vocab_size, str(folder))
        _write_table(writer, slots)
        with partial.open("r+b") as file:
            _write_tensors(file, slots, _tensors(folder, config), str(folder))


def _refuse_what_llama_cpp_lacks(config: ModelConfig, where: str) -> None:
    what = None
    if _is_llama3_scaled(config) and ARCHITECTURES[config.family] != "llama":
        what = f"Llama 3 rope scaling for {config.family}"
    if config.family == "qwen2" and config.num_heads * config.head_dim != config.hidden_size:
        what = f"a qwen2 of {config.num_heads} heads of {config.head_dim} in width {config.hidden_size}"
    if what:
        remedy = "Serve the Hugging Face folder instead."
        raise ModelError(f"llama.cpp does not know {what}.", where=where, remedy=remedy)


def _slots(config: ModelConfig, kind: GGMLQuantizationType) -> dict[str, _Slot]:
    """Lay the tensors out; the keys are Hugging Face's names."""
    places = tensor_places(config)
    if _is_llama3_scaled(config):
        places[ROPE_DIVISORS] = Place(ROPE_DIVISORS, (config.head_dim // 2,))
    slots: dict[str, _Slot] = {}
    offset = 0
    for gguf_name, place in places.items():
        stored = kind
        if len(place.shape) == 1:
            stored = GGMLQuantizationType.F32  # llama.cpp wants norms and biases so
        elif place.shape[-1] % GGML_QUANT_SIZES[kind][0]:
            stored = GGMLQuantizationType.F16  # a row that does not divide into quantized blocks
        slots[place.name] = slot = _Slot(gguf_name, place, stored, offset)
        offset += GGUFWriter.ggml_pad(slot.nbytes, GGUF_DEFAULT_ALIGNMENT)
    return slots


def _bos_token(folder: Path) -> str | None:
    token = optional_json(folder / "tokenizer_config.json").get("bos_token")
    return token.get("content") if isinstance(token, dict) else token


def _is_llama3_scaled(config: ModelConfig) -> bool:
    return config.rope_scaling is not None and config.rope_scaling["rope_type"] == "llama3"


def _write_config(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])


def _write_table(writer: GGUFWriter, slots: Mapping[str, _Slot]) -> None:
    """Write everything before the weights and close the file."""
    for slot in slots.values():
        # The numpy type is not used where the stored type is given.
        writer.add_tensor_info(
            slot.gguf_name, slot.place.shape, np.dtype(np.float32), slot.nbytes, raw_dtype=slot.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _tensors(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """What is to be stored, in whatever order the folder's files have it."""
    if _is_llama3_scaled(config):
        yield ROPE_DIVISORS, rope_divisors(config)
    for name, tensor in read_tensors(folder):
        tied = name == "lm_head.weight" and config.tie_embeddings
        if not tied and not name.endswith("rotary_emb.inv_freq"):
            yield name, tensor


def _write_tensors(
    file: BinaryIO, slots: Mapping[str, _Slot], tensors: Iterator[tuple[str, Tensor]], where: str
) -> None:
    start = GGUFWriter.ggml_pad(file.seek(0, os.SEEK_END), GGUF_DEFAULT_ALIGNMENT)
    file.truncate(start + max(slot.offset + slot.nbytes for slot in slots.values()))
    missing = set(slots)
    for name, tensor in tensors:
        slot = slots.get(name)
        if slot is None or tuple(tensor.shape) != slot.place.shape:
            what = f"tensor {name!r} of shape {list(tensor.shape)} does not fit the config."
            raise ModelError(what, where=where, remedy="Get config.json and weights of the same model.")
        values = tensor.to(torch.float32).numpy()
        if slot.place.paired_heads:
            values = rows_in_pairs(values, slot.place.paired_heads)
        file.seek(start + slot.offset)
        file.write(quantize(values, slot.kind).tobytes())
        missing.discard(name)
    if missing:
        what = f"{len(missing)} tensors are missing, first {min(missing)!r}."
        raise ModelError(what, where=where, remedy="Get the weights again.")

"""How GGUF names and orders the weights of the networks we know, beside Hugging Face's way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nestling.model.config import ModelConfig
from nestling.model.decoder import inverse_frequencies

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""GGUF's architecture of each model family."""

ROPE_DIVISORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Place:
    """One tensor in Hugging Face's terms. GGUF stores the rows of ``paired_heads`` heads in rotary pairs."""

    name: str
    shape: tuple[int, ...]
    paired_heads: int = 0


def tensor_places(config: ModelConfig) -> dict[str, Place]:
    """Every tensor of the network by its GGUF name."""
    width, hidden = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # llama.cpp rotates neighbouring rows for `llama`; for the others, like us, rows half a head apart.
    paired = ARCHITECTURES[config.family] == "llama"
    q_heads, k_heads = (config.num_heads, config.num_kv_heads) if paired else (0, 0)
    layer = {
        "attn_norm.weight": Place("input_layernorm.weight", (width,)),
        "ffn_norm.weight": Place("post_attention_layernorm.weight", (width,)),
        "attn_q.weight": Place("self_attn.q_proj.weight", (q, width), q_heads),
        "attn_k.weight": Place("self_attn.k_proj.weight", (kv, width), k_heads),
        "attn_v.weight": Place("self_attn.v_proj.weight", (kv, width)),
        "attn_output.weight": Place("self_attn.o_proj.weight", (width, q)),
        "ffn_gate.weight": Place("mlp.gate_proj.weight", (hidden, width)),
        "ffn_up.weight": Place("mlp.up_proj.weight", (hidden, width)),
        "ffn_down.weight": Place("mlp.down_proj.weight", (width, hidden)),
    }
    if config.qk_norm:
        layer["attn_q_norm.weight"] = Place("self_attn.q_norm.weight", (config.head_dim,))
        layer["attn_k_norm.weight"] = Place("self_attn.k_norm.weight", (config.head_dim,))
    biased = ["attn_q", "attn_k", "attn_v"] * config.qkv_bias
    biased += ["attn_output"] * config.output_bias + ["ffn_gate", "ffn_up", "ffn_down"] * config.mlp_bias
    for part in biased:
        weight = layer[f"{part}.weight"]
        name = weight.name.replace(".weight", ".bias")
        layer[f"{part}.bias"] = Place(name, weight.shape[:1], weight.paired_heads)
    places = {
        "token_embd.weight": Place("model.embed_tokens.weight", (config.vocab_size, width)),
        "output_norm.weight": Place("model.norm.weight", (width,)),
    }
    if not config.tie_embeddings:
        places["output.weight"] = Place("lm_head.weight", (config.vocab_size, width))
    for number in range(config.num_layers):
        for name, place in layer.items():
            places[f"blk.{number}.{name}"] = replace(place, name=f"model.layers.{number}.{place.name}")
    return places


def rows_in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's row order to GGUF's: rows i and i + head_dim/2 of a head become neighbours.

    rows: [heads * head_dim, ...]; the same shape comes back.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rows_in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of ``rows_in_pairs``."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_divisors(config: ModelConfig) -> Tensor:
    """What Llama 3 scaling divides each rotation speed by, [head_dim / 2]: the content of ``rope_freqs``."""
    return inverse_frequencies(replace(config, rope_scaling=None)) / inverse_frequencies(config)


def config_with_divisors(config: ModelConfig, divisors: Tensor) -> ModelConfig | None:
    """Find the Llama 3 scaling that gives these divisors, [head_dim / 2]; None when none does.

    Files keep the divisors but not the four numbers behind them. The largest divisor is the factor. Between
    the fast and the slow waves, 1 / divisor is linear in the speed. That line gives the other three up to a
    common scale, which we fix by low_freq_factor = 1 as Llama 3.1 does.
    """
    factor = float(divisors.max())
    if factor == 1:
        return replace(config, rope_scaling=None)
    candidates = [(4.0, 8192.0)]  # every Llama 3.x
    speeds = inverse_frequencies(replace(config, rope_scaling=None)).double()
    between = (divisors > 1 + 1e-6) & (divisors < factor * (1 - 1e-6))
    if between.sum() >= 2:
        cycles = speeds[between] / (2 * torch.pi)
        blend = (1 / divisors[between].double() - 1 / factor) / (1 - 1 / factor)
        line = torch.stack([cycles, -torch.ones_like(cycles)], dim=1)
        slope, offset = torch.linalg.lstsq(line, blend[:, None]).solution.flatten().tolist()
        if offset > 0:
            candidates.append((round(1 + 1 / offset, 4), float(round(slope / offset))))
    for high, original in candidates:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(original),
        }
        candidate = replace(config, rope_scaling=scaling)
        if torch.allclose(rope_divisors(candidate), divisors, rtol=1e-5, atol=0):
            return candidate
    return None

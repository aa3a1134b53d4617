"""The network: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Llama, Mistral, Qwen2 and Qwen3).

Parameter names are Hugging Face's, so a state dict is a model file. Sequences are flat rows of tokens; the
``attend`` object handed to ``forward`` (a ``PackedLayout`` or a ``KVCache`` view) knows who sees whom, so one
network serves training, prefill and decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from nestling.model.config import ModelConfig
from nestling.model.elementwise import gated, rms_norm, rotate


class Attend(Protocol):
    """Who sees whom. ``positions``: [T]; ``attend`` maps q [T, H, D], k and v [T, Hkv, D] to [T, H, D]."""

    @property
    def positions(self) -> Tensor: ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Below:
    """A row of tokens behind the first ``blocks`` blocks: states [T, hidden_size], without gradient."""

    states: Tensor
    blocks: int


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Rotary(nn.Module):
    """Rotary position embedding in the half-rotated form (Su et al. 2021), cosines and sines tabled in fp32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("inverse_frequencies", inverse_frequencies(config), persistent=False)
        self.inverse_frequencies: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Move with the network, but stay in fp32: rounded to bf16, position 1,000 would be turned by another angle."""
        exact = self.inverse_frequencies
        super()._apply(fn, recurse)
        self.inverse_frequencies = exact.to(self.inverse_frequencies.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [T] -> (cos, sin) as ``rotate`` takes them, each [T, 1, head_dim]."""
        angles = (positions.to(torch.float32)[:, None] * self.inverse_frequencies)[:, None, :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Rotation speed of each pair of channels, [head_dim / 2], in radians per position."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    speeds = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return speeds
    if scaling["rope_type"] == "linear":
        return speeds / scaling["factor"]
    # Llama 3.1: slow waves are stretched by `factor`, fast ones kept, those between blended.
    wavelengths = 2 * math.pi / speeds
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * speeds / scaling["factor"] + blend * speeds


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.output_bias)
        norm = (lambda: RMSNorm(config.head_dim, config.rms_norm_eps)) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        q = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.head_dim)))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        out = attend.attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o_proj(out.flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layer, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embeddings, blocks and the final norm: tokens to hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)

    def forward(self, ids: Tensor, attend: Attend, below: Below | None = None) -> Tensor:
        x, first = (below.states, below.blocks) if below else (self.embed_tokens(ids), 0)
        return self.norm(self._through(x, attend, first, len(self.layers)))

    @torch.no_grad()
    def below(self, ids: Tensor, attend: Attend, blocks: int) -> Below:
        """What ``forward`` may go on from: the part of it that networks with the same first blocks share."""
        return Below(self._through(self.embed_tokens(ids), attend, 0, blocks), blocks)

    def _through(self, x: Tensor, attend: Attend, first: int, end: int) -> Tensor:
        cos, sin = self.rotary(attend.positions, x.dtype)
        for number in range(first, end):
            x = self.layers[number](x, cos, sin, number, attend)
        return x


class Decoder(nn.Module):
    """A causal language model over flat rows of tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: Tensor, attend: Attend, below: Below | None = None) -> Tensor:
        """ids [T] -> final normed hidden states [T, hidden_size]; from ``below`` on, where it is given."""
        hidden: Tensor = self.model(ids, attend, below)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> fp32 logits [N, vocab_size]."""
        return self.lm_head(hidden).float()

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device


@torch.no_grad()
def initialise(decoder: Decoder, seed: int, std: float = 0.02) -> Decoder:
    """Fill a decoder with small random weights, repeatably: normal(0, std), norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.copy_(
                torch.empty_like(parameter, dtype=torch.float32).normal_(0, std, generator=generator)
            )
    return decoder

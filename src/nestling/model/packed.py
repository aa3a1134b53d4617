"""The network for inference on a CPU: the same numbers by fewer, larger steps.

A product of a few rows with a plain matrix spends most of its time rearranging the matrix, once for every token: here
every matrix lies in the layout the CPU's kernels read (in bf16 [1, 576] x [576, 1536] takes half the time, 32 rows two
thirds; in fp32 8 rows take two thirds and the vocabulary's projection half). In fp32 many rows are faster on the plain
matrix: where the weights stay at hand, each product takes the faster one. And between a decode step's small products,
starting an operation costs more than computing it: queries, keys and values are one product, activation, gate and
residual are taken on by the products themselves (docs/decisions.md has the gains). Where torch has no such kernels the
plain decoder is used.
"""

from __future__ import annotations

import copy
import functools
import platform
from collections.abc import Callable
from threading import Lock
from typing import Any, cast

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from nestling.model.decoder import Attend, Block, Decoder
from nestling.model.elementwise import rotate
from nestling.model.lora import LoRALinear

_ROWS = 32  # the layout is chosen for this many rows; it serves any number
_FEW = 32  # up to so many rows the packed matrix is the faster one in fp32 too; of the vocabulary's at any number
_PLENTY = 8  # times the weights must be free for a server in fp32 to pack: two versions are held at a swap


# What oneDNN takes on by these names, for products on the plain matrix.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "swish": functools.partial(F.silu, inplace=True),
}
_COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": Tensor.add_, "mul": Tensor.mul_}


class PackedLinear:
    """``nn.Linear`` on a packed matrix, adapters merged, no gradients; several that read the same input become one.

    ``both``: the plain matrix is kept beside it, for many rows.
    """

    def __init__(self, *linears: Any, both: bool = False) -> None:
        linears = tuple(x.merged() if isinstance(x, LoRALinear) else x for x in linears)
        weights, biases = [x.weight.detach() for x in linears], [x.bias for x in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self._bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        self._plain = weight if both else None

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        """x [T, in] -> [T, out], passed through an activation that oneDNN knows by this name."""
        if self._plain is not None and len(x) > _FEW:
            return _ACTIVATIONS[then](F.linear(x, self._plain, self._bias))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, then, [], "")
        return out

    def combined(self, x: Tensor, how: str, other: Tensor) -> Tensor:
        """The product's result "add"ed to or "mul"tiplied with ``other`` [T, out], rounded once."""
        if self._plain is not None and len(x) > _FEW:
            return _COMBINATIONS[how](F.linear(x, self._plain, self._bias), other)
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self._bias, how)
        return out


class _PackedBlock:
    def __init__(self, block: Block, plain: Callable[[Module], Module], both: bool) -> None:
        attention, mlp = block.self_attn, block.mlp
        self._q_norm, self._k_norm = plain(attention.q_norm), plain(attention.k_norm)
        self._before_attention, self._before_mlp = (
            plain(block.input_layernorm),
            plain(block.post_attention_layernorm),
        )
        packed = functools.partial(PackedLinear, both=both)
        self._qkv = packed(attention.q_proj, attention.k_proj, attention.v_proj)
        self._o, self._down = packed(attention.o_proj), packed(mlp.down_proj)
        self._gate, self._up = packed(mlp.gate_proj), packed(mlp.up_proj)
        dim = attention.head_dim
        self._heads = [x.out_features // dim for x in (attention.q_proj, attention.k_proj, attention.v_proj)]

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        heads = self._qkv(self._before_attention(x)).unflatten(-1, (sum(self._heads), -1))
        turned, v = heads.split([self._heads[0] + self._heads[1], self._heads[2]], dim=1)
        q, k = turned.split(self._heads[:2], dim=1)
        if isinstance(self._q_norm, nn.Identity):
            q, k = rotate(turned, cos, sin).split(self._heads[:2], dim=1)
        else:
            q, k = rotate(self._q_norm(q), cos, sin), rotate(self._k_norm(k), cos, sin)
        x = self._o.combined(attend.attend(layer, q, k, v).flatten(-2), "add", x)
        y = self._before_mlp(x)
        return self._down.combined(self._up.combined(y, "mul", self._gate(y, "swish")), "add", x)


class PackedDecoder:
    """Stands for a ``Decoder`` in inference, every matrix packed; in fp32 the plain ones stay in use beside them.

    Embeddings and norms are the decoder's own, or copies where it is ``frozen``: as views of a mapped file they would
    keep all of it in memory.
    """

    def __init__(self, decoder: Decoder, frozen: bool = False) -> None:
        self.device, self.dtype, trunk = decoder.device, decoder.dtype, decoder.model
        plain: Callable[[Module], Module] = copy.deepcopy if frozen else lambda module: module
        self._embed, self._rotary, self._norm = map(plain, (trunk.embed_tokens, trunk.rotary, trunk.norm))
        both = self.dtype == torch.float32
        self._blocks = [_PackedBlock(cast(Block, block), plain, both) for block in decoder.model.layers]
        self._head = PackedLinear(decoder.lm_head)

    def __call__(self, ids: Tensor, attend: Attend) -> Tensor:
        """ids [T] -> final normed hidden states [T, hidden_size]."""
        x = self._embed(ids)
        cos, sin = self._rotary(attend.positions, x.dtype)
        for number, block in enumerate(self._blocks):
            x = block(x, cos, sin, number, attend)
        out: Tensor = self._norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> fp32 logits [N, vocab_size]."""
        return self._head(hidden).float()


class InferenceNetwork:
    """What engines compute with: the decoder itself, or its packed form where that is faster.

    Args:
        decoder: the network.
        frozen: its weights never change, so that only their packed form is kept.
    """

    def __init__(self, decoder: Decoder, frozen: bool = False) -> None:
        packs = can_pack(decoder, frozen)
        self._network: Decoder | PackedDecoder = (
            PackedDecoder(decoder, frozen) if packs and frozen else decoder
        )
        self._followed = decoder if packs and not frozen else None
        self._state_of = 0  # the state of the weights that were packed
        self._lock = Lock()  # engines side by side ask at the same time

    def current(self) -> Decoder | PackedDecoder:
        """The network with the weights as they are now."""
        with self._lock:
            if self._followed is not None:
                state = hash(tuple((id(p), p._version) for p in self._followed.parameters()))
                if state != self._state_of:
                    self._network, self._state_of = PackedDecoder(self._followed), state
            return self._network

    def rest(self) -> Decoder | PackedDecoder:
        """Drop the packed form, where there is another, until it is asked for; returns what is left."""
        with self._lock:
            if self._followed is not None:
                self._network, self._state_of = self._followed, 0
            return self._network


def can_pack(decoder: Decoder, frozen: bool = False) -> bool:
    """Whether this build of torch packs matrices of this number format for this processor, and to advantage.

    In fp32 what is ``frozen`` only where memory is plentiful: a server maps the weights from their file, and packed
    ones beside them are as much again of its own for every version.
    """
    if decoder.dtype not in (torch.bfloat16, torch.float32) or decoder.device.type != "cpu":
        return False
    if decoder.dtype == torch.float32:
        if platform.machine() not in ("x86_64", "AMD64"):
            return False  # other libraries compute there: not measured
        weights = sum(parameter.nbytes for parameter in decoder.parameters())
        if frozen and _PLENTY * weights > psutil.virtual_memory().available:
            return False
    try:
        probe = PackedLinear(nn.Linear(64, 64, bias=False, dtype=decoder.dtype))
        row = torch.zeros(1, 64, dtype=decoder.dtype)
        probe.combined(probe(row, "swish"), "add", row)
    except (AttributeError, RuntimeError, NotImplementedError):  # no oneDNN, or none for it here
        return False
    return True

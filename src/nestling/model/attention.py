"""Causal grouped-query attention of packed rows, with a backward pass for CPUs.

PyTorch's fused kernel is right for accelerators and for inference. On a CPU its bf16 backward runs at a few per cent of
the machine's matrix-product rate; the one here is plain batched products. It keeps queries, keys and values, and the
probabilities of short sequences; those of long ones would be most of the memory and are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KEEP_UP_TO = 128
"""Tokens of a sequence up to which its probabilities are kept: nine heads' are then a seventh of what a layer keeps."""


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length that attend together, right-padded to the longest.

    gather: [B, L] the row index of each token; padding reads row 0.
    unread: [U] flat positions in [B, L] whose results nobody reads: padding, and a prefix that another sequence owns.
    """

    gather: Tensor
    unread: Tensor

    def to(self, device: torch.device) -> Bucket:
        return Bucket(self.gather.to(device), self.unread.to(device))


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a row of T tokens lie.

    buckets: all sequences; owner: [T] position of each token's own result among the buckets' results, end to end;
    shared: some token is read by several sequences.
    """

    buckets: tuple[Bucket, ...]
    owner: Tensor
    shared: bool

    def to(self, device: torch.device) -> Sequences:
        return Sequences(tuple(b.to(device) for b in self.buckets), self.owner.to(device), self.shared)


def row_attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """Each token attends to itself and what is before it in its sequence.

    q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim], heads a multiple of kv_heads. Returns q's shape.
    """
    # The engine computes in inference mode. A training forward without gradients (PPO's old log-probabilities) must
    # take the same path as the one with them, or the two would differ in their last bits.
    if q.device.type == "cpu" and not torch.is_inference_mode_enabled():
        out: Tensor = _RowAttention.apply(q, k, v, sequences)
        return out
    parts = []
    for bucket in sequences.buckets:
        queries, keys, values = (t[bucket.gather].transpose(1, 2) for t in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        part = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
        parts.append(part.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[sequences.owner]


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
        parts, kept = [], []
        for bucket in sequences.buckets:
            queries, keys, values = (_by_kv_head(t, bucket.gather, k.shape[1]) for t in (q, k, v))
            p = _probabilities(queries, keys)
            parts.append(_by_token(torch.bmm(p, values), bucket.gather, q.shape[1]))
            kept.append(p if bucket.gather.shape[1] <= KEEP_UP_TO else p.new_empty(0))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.sequences = sequences
        return torch.cat(parts).index_select(0, sequences.owner).view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        sequences: Sequences = ctx.sequences
        kv_heads, scale = k.shape[1], q.shape[-1] ** -0.5
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for bucket, p in zip(sequences.buckets, kept, strict=True):
            queries, keys, values = (_by_kv_head(t, bucket.gather, kv_heads) for t in (q, k, v))
            grad = _by_kv_head(grads[0], bucket.gather, kv_heads, blank=bucket.unread)
            if not p.numel():
                p = _probabilities(queries, keys)
            grad_v = torch.bmm(p.transpose(1, 2), grad)
            slope = torch.bmm(grad, values.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, p, -1, p.dtype).mul_(scale)
            back = (torch.bmm(slope, keys), torch.bmm(slope.transpose(1, 2), queries), grad_v)
            grad_q, grad_k, grad_v = (
                _by_token(t, bucket.gather, heads)
                for t, heads in zip(back, (q.shape[1], kv_heads, kv_heads), strict=True)
            )
            parts.append((grad_q, grad_k, grad_v))
        all_q, all_k, all_v = (torch.cat(part) for part in zip(*parts, strict=True))
        grad_q = all_q.index_select(0, sequences.owner).view(q.shape)
        return grad_q, _to_row(all_k, k, sequences), _to_row(all_v, v, sequences), None


def _by_kv_head(row: Tensor, gather: Tensor, kv_heads: int, blank: Tensor | None = None) -> Tensor:
    """Row [T, heads, D] -> [B * kv_heads, group * L, D]: the heads that share a key/value head stand together.

    Positions in ``blank`` are read as zero.
    """
    batch, length = gather.shape
    tokens = row.flatten(1).index_select(0, gather.flatten())
    if blank is not None:
        tokens.index_fill_(0, blank, 0.0)
    split = tokens.view(batch, length, kv_heads, -1, row.shape[-1])
    return split.permute(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, row.shape[-1])


def _by_token(x: Tensor, gather: Tensor, heads: int) -> Tensor:
    """The inverse of ``_by_kv_head``: [B * kv_heads, group * L, D] -> [B * L, heads * D]."""
    batch, length = gather.shape
    kv_heads = len(x) // batch
    split = x.view(batch, kv_heads, heads // kv_heads, length, -1)
    return split.permute(0, 3, 1, 2, 4).reshape(batch * length, -1)


def _to_row(grad: Tensor, like: Tensor, sequences: Sequences) -> Tensor:
    """Gradients of the buckets' keys or values [sum of B * L, heads * D], summed into the row."""
    if not sequences.shared:
        return grad.index_select(0, sequences.owner).view(like.shape)
    readers = torch.cat([bucket.gather.flatten() for bucket in sequences.buckets])
    row = torch.zeros(len(like), grad.shape[1], dtype=torch.float32, device=like.device)
    return row.index_add_(0, readers, grad.float()).to(like.dtype).view(like.shape)


def _probabilities(queries: Tensor, keys: Tensor) -> Tensor:
    """[N, group * L, D] and [N, L, D] -> [N, group * L, L]; the kernel takes the softmax in fp32."""
    length = keys.shape[1]
    mask = torch.full((length, length), -torch.inf, dtype=queries.dtype, device=queries.device).triu_(1)
    mask = mask.repeat(queries.shape[1] // length, 1).expand(len(queries), -1, -1)
    return torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5).softmax(-1)

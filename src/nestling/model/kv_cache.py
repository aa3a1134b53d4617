"""Keys and values of the sequences being decoded, in compact rows.

Row r of the cache belongs to the r-th running sequence. Rows stay compact, ``0 .. count``: when a sequence leaves, the
last one moves into its row. Storage grows on demand in both directions, so an idle server holds next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.model.config import ModelConfig
from nestling.model.layout import PackedLayout

_LENGTH_STEP = 128


class KVCache:
    """Keys and values of all layers: two tensors [layers, rows, kv_heads, length, head_dim]."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, 0, config.num_kv_heads, 0, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.lengths: list[int] = []

    @property
    def count(self) -> int:
        return len(self.lengths)

    def add(self, lengths: Sequence[int]) -> int:
        """Make room for new sequences with these prompt lengths; returns the first one's row."""
        first = self.count
        self.lengths.extend(lengths)
        self.reserve(max(self.lengths))
        return first

    def reserve(self, length: int, rows_to_come: int = 0) -> None:
        """Grow so that every row in use, and so many more, can hold ``length`` tokens."""
        layers, rows, heads, capacity, dim = self.keys.shape
        new_rows, new_capacity = (
            max(rows, self.count + rows_to_come),
            max(capacity, -(-length // _LENGTH_STEP) * _LENGTH_STEP),
        )
        if (new_rows, new_capacity) == (rows, capacity):
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.zeros(layers, new_rows, heads, new_capacity, dim, dtype=old.dtype, device=old.device)
            new[:, :rows, :, :capacity] = old
            setattr(self, name, new)

    def remove(self, row: int) -> int:
        """Free a row. The last row moves into it; returns the row that moved (``row`` itself if it was last)."""
        last = self.count - 1
        if row != last:
            used = self.lengths[last]
            self.keys[:, row, :, :used] = self.keys[:, last, :, :used]
            self.values[:, row, :, :used] = self.values[:, last, :, :used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:  # give the memory back between bursts
            self.keys, self.values = self.keys[:, :0, :, :0].clone(), self.values[:, :0, :, :0].clone()
        return last

    def keep(self, count: int) -> None:
        """Free all rows but the first ``count``."""
        del self.lengths[count:]

    def prefill(
        self, lengths: Sequence[int], common: int = 0, copies: Sequence[int] | None = None
    ) -> Prefill:
        """Add sequences; the returned object attends like a packed row and stores keys and values on the way.

        The first ``common`` tokens of all of them are the same and lie once, in front of the row. Prompt i is computed
        once and goes into ``copies[i]`` neighbouring rows of the cache, one when not given.
        """
        copies = list(copies or [1] * len(lengths))
        first = self.add([length for length, n in zip(lengths, copies, strict=True) for _ in range(n)])
        layout = PackedLayout.from_lengths(lengths, common).to(self.keys.device)
        return Prefill(self, layout, first, list(lengths), copies, common)

    def decode(self) -> DecodeStep:
        """One more token for every row; the returned object appends it and attends over each row's past."""
        positions = torch.tensor(self.lengths, device=self.keys.device)
        self.lengths = [length + 1 for length in self.lengths]
        self.reserve(max(self.lengths))
        span = max(self.lengths)
        ahead = torch.arange(span, device=positions.device)[None, :] > positions[:, None]
        mask = torch.zeros(ahead.shape, dtype=self.keys.dtype, device=positions.device)
        mask.masked_fill_(ahead, -torch.inf)
        rows = torch.arange(len(positions), device=positions.device)
        return DecodeStep(self, rows, positions, mask[:, None, None, :], span)


@dataclass(frozen=True)
class Prefill:
    """Attention of whole prompts that also fills the cache."""

    cache: KVCache
    layout: PackedLayout
    first_row: int
    lengths: list[int]
    copies: list[int]
    common: int

    @property
    def positions(self) -> Tensor:
        return self.layout.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for cache, new in ((self.cache.keys, k), (self.cache.values, v)):
            row, start = self.first_row, self.common
            cache[layer, row : row + sum(self.copies), :, :start] = new[:start].transpose(0, 1)
            for length, copies in zip(self.lengths, self.copies, strict=True):
                end = start + length - self.common
                cache[layer, row : row + copies, :, self.common : length] = new[start:end].transpose(0, 1)
                row, start = row + copies, end
        return self.layout.attend(layer, q, k, v)


@dataclass(frozen=True)
class DecodeStep:
    """Attention of one new token a row over its past.

    rows: [B] all rows; positions: [B]; mask: [B, 1, 1, span] 0 where a row's token may look, else -inf; span: the
    longest row.
    """

    cache: KVCache
    rows: Tensor
    positions: Tensor
    mask: Tensor
    span: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.positions] = k
        values[self.rows, :, self.positions] = v
        keys, values = (x[: len(self.rows), :, : self.span] for x in (keys, values))
        # The heads that share a key/value head go in as that head's queries: no expansion of the cache.
        grouped = q.unflatten(1, (keys.shape[1], -1))
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask).flatten(1, 2)

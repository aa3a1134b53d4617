"""How several sequences lie in one row of tokens, and how attention keeps them apart.

Every pass over the network takes a flat row of ``T`` tokens with no padding: linear layers, norms and losses never
compute a token that is not there. Only attention needs to know where sequences begin. It gathers the row into
``B`` right-padded sequences of length ``L``; under a causal mask a real token never sees the padding behind it, so
no mask is needed. The gather may read one token into several sequences, which is how candidates of one prompt share
the prompt's computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PackedLayout:
    """Where each sequence lies in the flat row.

    positions: [T] rotary position of each token.
    gather: [B, L] row index of each sequence's tokens, padding reads row 0; None when the row is one sequence.
    scatter: [T] index into the flattened [B * L] that holds each token's result; None as above.
    """

    positions: Tensor
    gather: Tensor | None
    scatter: Tensor | None

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> PackedLayout:
        """Sequences one after another; ``sum(lengths)`` = T."""
        return cls.shared_prefix([(0, [length]) for length in lengths])

    @classmethod
    def shared_prefix(cls, groups: Sequence[tuple[int, Sequence[int]]]) -> PackedLayout:
        """Groups of (prefix length, [completion lengths]): the prefix lies once, then each completion.

        Completion i of a group attends to the prefix and to itself, as if the two stood alone.
        """
        positions: list[int] = []
        sequences: list[tuple[list[int], int]] = []  # (row indices, first position it owns)
        for prefix_length, completions in groups:
            prefix = list(range(len(positions), len(positions) + prefix_length))
            positions.extend(range(prefix_length))
            for number, length in enumerate(completions):
                own = list(range(len(positions), len(positions) + length))
                positions.extend(range(prefix_length, prefix_length + length))
                sequences.append((prefix + own, 0 if number == 0 else prefix_length))
        if len(sequences) == 1:
            return cls(torch.tensor(positions), None, None)
        longest = max(len(rows) for rows, _ in sequences)
        gather = torch.zeros(len(sequences), longest, dtype=torch.long)
        scatter = torch.empty(len(positions), dtype=torch.long)
        for b, (rows, first_owned) in enumerate(sequences):
            index = torch.tensor(rows)
            gather[b, : len(rows)] = index
            scatter[index[first_owned:]] = b * longest + torch.arange(first_owned, len(rows))
        return cls(torch.tensor(positions), gather, scatter)

    def to(self, device: torch.device) -> PackedLayout:
        if self.positions.device == device:
            return self
        move = lambda t: None if t is None else t.to(device)
        return PackedLayout(self.positions.to(device), move(self.gather), move(self.scatter))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence.

        q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim]. Returns [T, heads, head_dim].
        """
        if self.gather is None or self.scatter is None:
            q, k, v = q[None], k[None], v[None]
        else:
            q, k, v = q[self.gather], k[self.gather], v[self.gather]
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            is_causal=True, enable_gqa=q.shape[2] != k.shape[2],
        ).transpose(1, 2)  # fmt: skip
        return out[0] if self.scatter is None else out.flatten(0, 1)[self.scatter]

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
from torch import Tensor

from nestling.model.attention import causal_attention

_BUCKET = 0.7  # sequences attend together when the shortest has at least this share of the longest's tokens


@dataclass(frozen=True)
class PackedLayout:
    """Where each sequence lies in the flat row.

    positions: [T] rotary position of each token.
    gathers: for each bucket of sequences of similar length, [B, L] row indices of their tokens; padding reads row 0.
        Empty when the row is one sequence.
    scatter: [T] index into the buckets' results, flattened and end to end, of each token's own; None as above.
    """

    positions: Tensor
    gathers: tuple[Tensor, ...]
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
            return cls(torch.tensor(positions), (), None)
        scatter = torch.empty(len(positions), dtype=torch.long)
        gathers: list[Tensor] = []
        start = 0
        for bucket in _buckets(sequences):
            longest = len(bucket[0][0])
            gather = torch.zeros(len(bucket), longest, dtype=torch.long)
            for b, (rows, first_owned) in enumerate(bucket):
                index = torch.tensor(rows)
                gather[b, : len(rows)] = index
                scatter[index[first_owned:]] = start + b * longest + torch.arange(first_owned, len(rows))
            gathers.append(gather)
            start += gather.numel()
        return cls(torch.tensor(positions), tuple(gathers), scatter)

    def to(self, device: torch.device) -> PackedLayout:
        if self.positions.device == device:
            return self
        scatter = None if self.scatter is None else self.scatter.to(device)
        return PackedLayout(self.positions.to(device), tuple(g.to(device) for g in self.gathers), scatter)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence.

        q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim]. Returns [T, heads, head_dim].
        """
        if self.scatter is None:
            return causal_attention(q[None], k[None], v[None])[0]
        parts = [causal_attention(q[gather], k[gather], v[gather]).flatten(0, 1) for gather in self.gathers]
        return torch.cat(parts)[self.scatter]


def _buckets(sequences: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """Sequences of similar length together, longest first, so that attention computes little padding."""
    buckets: list[list[tuple[list[int], int]]] = []
    for sequence in sorted(sequences, key=lambda s: -len(s[0])):
        if buckets and len(sequence[0]) >= _BUCKET * len(buckets[-1][0][0]):
            buckets[-1].append(sequence)
        else:
            buckets.append([sequence])
    return buckets

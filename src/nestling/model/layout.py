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

from nestling.model.attention import Bucket, Sequences, row_attention

_BUCKET = 0.7  # sequences attend together when the shortest has at least this share of the longest's tokens


@dataclass(frozen=True)
class PackedLayout:
    """Where each sequence lies in the flat row.

    positions: [T] rotary position of each token; sequences: who attends to whom.
    """

    positions: Tensor
    sequences: Sequences

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], common: int = 0) -> PackedLayout:
        """Sequences one after another. The first ``common`` tokens of all of them are the same and lie once, in front.

        T = common + the sum of (length - common).
        """
        return cls.shared_prefix([(0, [length - common]) for length in lengths], common)

    @classmethod
    def shared_prefix(cls, groups: Sequence[tuple[int, Sequence[int]]], common: int = 0) -> PackedLayout:
        """Groups of (prefix length, [completion lengths]): the prefix lies once, then each completion.

        Completion i of a group attends to the ``common`` tokens in front, the prefix and itself, as if alone.
        """
        positions = list(range(common))
        sequences: list[tuple[list[int], int]] = []  # (row indices, first position it owns)
        for prefix_length, completions in groups:
            start = common + prefix_length
            prefix = [*range(common), *range(len(positions), len(positions) + prefix_length)]
            positions.extend(range(common, start))
            for number, length in enumerate(completions):
                own = list(range(len(positions), len(positions) + length))
                positions.extend(range(start, start + length))
                owned = start if number else common if sequences else 0
                sequences.append((prefix + own, owned))
        owner = torch.empty(len(positions), dtype=torch.long)
        buckets: list[Bucket] = []
        start = 0
        for bucket in _buckets(sequences):
            longest = len(bucket[0][0])
            gather = torch.zeros(len(bucket), longest, dtype=torch.long)
            unread = torch.ones(len(bucket), longest, dtype=torch.bool)
            for b, (rows, first_owned) in enumerate(bucket):
                index = torch.tensor(rows)
                gather[b, : len(rows)] = index
                owner[index[first_owned:]] = start + b * longest + torch.arange(first_owned, len(rows))
                unread[b, first_owned : len(rows)] = False
            buckets.append(Bucket(gather, unread.flatten().nonzero()[:, 0]))
            start += gather.numel()
        shared = sum(len(rows) for rows, _ in sequences) > len(positions)
        return cls(torch.tensor(positions), Sequences(tuple(buckets), owner, shared))

    def to(self, device: torch.device) -> PackedLayout:
        if self.positions.device == device:
            return self
        return PackedLayout(self.positions.to(device), self.sequences.to(device))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence.

        q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim]. Returns [T, heads, head_dim].
        """
        return row_attention(q, k, v, self.sequences)


def _buckets(sequences: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """Sequences of similar length together, longest first, so that attention computes little padding."""
    buckets: list[list[tuple[list[int], int]]] = []
    for sequence in sorted(sequences, key=lambda s: -len(s[0])):
        if buckets and len(sequence[0]) >= _BUCKET * len(buckets[-1][0][0]):
            buckets[-1].append(sequence)
        else:
            buckets.append([sequence])
    return buckets

"""Micro-batches: several sequences laid end to end in one row of tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.model.layout import PackedLayout
from nestling.text.samples import TokenSample


@dataclass(frozen=True)
class Row:
    """Packed sequences and the tokens in them that are asked about.

    ids: [T] tokens; predictors: [N] index into the row of the state that predicts; targets: [N] the tokens predicted.
    counts: how many targets each sequence has, in order.
    """

    ids: Tensor
    layout: PackedLayout
    predictors: Tensor
    targets: Tensor
    counts: list[int]


@dataclass(frozen=True)
class Candidates:
    """Completions of shared prompts: ``last`` [sum of K] is the row index of each one's final token."""

    ids: Tensor
    layout: PackedLayout
    last: Tensor


def pack_row(samples: Sequence[TokenSample], device: torch.device) -> Row:
    """Lay samples end to end; a token is a target where its loss mask is set."""
    ids: list[int] = []
    targets: list[int] = []
    counts = []
    for sample in samples:
        chosen = [len(ids) + at for at, wanted in enumerate(sample.loss_mask) if wanted and at > 0]
        ids.extend(sample.ids)
        targets.extend(chosen)
        counts.append(len(chosen))
    row = torch.tensor(ids, device=device)
    at = torch.tensor(targets, dtype=torch.long, device=device)
    layout = PackedLayout.from_lengths([len(s.ids) for s in samples]).to(device)
    return Row(row, layout, at - 1, row[at], counts)


def pack_candidates(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], device: torch.device
) -> Candidates:
    """Lay (prompt, completions) groups end to end, each prompt once for all its completions."""
    ids: list[int] = []
    last = []
    for prompt, completions in groups:
        ids.extend(prompt)
        for completion in completions:
            ids.extend(completion)
            last.append(len(ids) - 1)
    layout = PackedLayout.shared_prefix([(len(p), [len(c) for c in cs]) for p, cs in groups]).to(device)
    return Candidates(torch.tensor(ids, device=device), layout, torch.tensor(last, device=device))

"""Micro-batches: several sequences laid end to end in one row of tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.model.decoder import Below
from nestling.model.layout import PackedLayout
from nestling.text.samples import TokenSample


@dataclass(frozen=True)
class Row:
    """Packed sequences and the tokens in them that are asked about.

    ids: [T] tokens; predictors: [N] index into the row of the state that predicts; targets: [N] the tokens predicted.
    counts: how many targets each sequence has, in order.
    below: what frozen blocks make of it, once that is computed.
    """

    ids: Tensor
    layout: PackedLayout
    predictors: Tensor
    targets: Tensor
    counts: list[int]
    below: Below | None = None


@dataclass(frozen=True)
class Candidates:
    """Completions of shared prompts: ``last`` [sum of K] is the row index of each one's final token."""

    ids: Tensor
    layout: PackedLayout
    last: Tensor


def pack_row(samples: Sequence[TokenSample], device: torch.device) -> Row:
    """Lay samples end to end; a token is a target where its loss mask is set.

    What all samples begin with, such as a system prompt, lies and is computed once.
    """
    first_targets = [sample.loss_mask.index(True, 1) for sample in samples if any(sample.loss_mask[1:])]
    common = common_prefix([list(sample.ids) for sample in samples], first_targets)
    ids = list(samples[0].ids[:common])
    predictors: list[int] = []
    targets: list[int] = []
    counts = []
    for sample in samples:
        offset = len(ids) - common
        chosen = [at for at, wanted in enumerate(sample.loss_mask) if wanted and at > 0]
        predictors.extend(at - 1 if at == common else offset + at - 1 for at in chosen)
        targets.extend(sample.ids[at] for at in chosen)
        ids.extend(sample.ids[common:])
        counts.append(len(chosen))
    layout = PackedLayout.from_lengths([len(s.ids) for s in samples], common).to(device)
    as_tensor = lambda values: torch.tensor(values, dtype=torch.long, device=device)
    return Row(as_tensor(ids), layout, as_tensor(predictors), as_tensor(targets), counts)


Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and the completions that share it, as token ids."""


def pack_candidates(groups: Sequence[Group], device: torch.device) -> Candidates:
    """Lay (prompt, completions) groups end to end, each prompt once for all its completions."""
    ids, layout, spans = _lay(groups, device)
    last = torch.tensor([end - 1 for _, _, end in spans], device=device)
    return Candidates(ids, layout, last)


def pack_answers(groups: Sequence[Group], device: torch.device) -> Row:
    """The same row, asked about every token of every completion."""
    ids, layout, spans = _lay(groups, device)
    predictors = [at for before, start, end in spans for at in (before, *range(start, end - 1))]
    targets = [token for _, completions in groups for completion in completions for token in completion]
    as_tensor = lambda values: torch.tensor(values, dtype=torch.long, device=device)
    return Row(
        ids, layout, as_tensor(predictors), as_tensor(targets), [end - start for _, start, end in spans]
    )


def _lay(
    groups: Sequence[Group], device: torch.device
) -> tuple[Tensor, PackedLayout, list[tuple[int, int, int]]]:
    """The row's tokens, its layout, and where each completion lies: (last token of its prompt, start, end)."""
    common = common_prefix([list(prompt) for prompt, _ in groups])
    ids: list[int] = list(groups[0][0][:common])
    spans = []
    for prompt, completions in groups:
        ids.extend(prompt[common:])
        before = len(ids) - 1
        for completion in completions:
            spans.append((before, len(ids), len(ids) + len(completion)))
            ids.extend(completion)
    lengths = [(len(p) - common, [len(c) for c in cs]) for p, cs in groups]
    layout = PackedLayout.shared_prefix(lengths, common).to(device)
    return torch.tensor(ids, device=device), layout, spans


def common_prefix(sequences: Sequence[list[int]], limits: Sequence[int] = ()) -> int:
    """How many tokens all sequences begin with: less than the shortest has, at most the least of ``limits``.

    0 for a single sequence, which shares with nobody.
    """
    if len(sequences) < 2:
        return 0
    first, last = min(sequences), max(sequences)  # in dictionary order: what these two share, all share
    most = min([len(sequence) - 1 for sequence in sequences] + list(limits))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or i >= most), most)

"""Which data each optimizer step sees, fixed before the first one."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.data.packing import epoch_order, pack


def plan_steps(
    lengths: Sequence[int], *, row_tokens: int, batch_tokens: int, token_budget: int, epochs: int, seed: int
) -> list[list[list[int]]]:
    """Which items make up each row of each step: steps -> rows -> item indices.

    Every epoch goes through all items in a new order; items are packed into rows of at most ``row_tokens``, rows are
    gathered into steps of as near ``batch_tokens`` as whole rows allow. The plan ends with the epochs or at
    ``token_budget`` tokens, whichever comes first; it depends on the arguments alone, so a resumed run follows it too.
    """
    steps: list[list[list[int]]] = []
    seen = 0
    for epoch in range(epochs):
        order = epoch_order(len(lengths), seed, epoch)
        rows = [[order[i] for i in bin_] for bin_ in pack([lengths[i] for i in order], row_tokens)]
        rows = [rows[i] for i in epoch_order(len(rows), seed, epoch)]
        step: list[list[int]] = []
        filled = 0
        for row in rows:
            size = sum(lengths[i] for i in row)
            if seen + size > token_budget:
                return [*steps, step] if step else steps
            if step and filled + size / 2 > batch_tokens:
                steps.append(step)
                step, filled = [], 0
            step.append(row)
            seen, filled = seen + size, filled + size
        if step:
            steps.append(step)
    return steps

"""One optimizer step: accumulate micro-batches, clip, update. Every stage goes through here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from nestling.errors import TrainingStopped
from nestling.training.optimizer import MasterAdamW

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Loss:
    """A micro-batch's loss as a sum over ``count`` items (tokens, rankings), with sums to be logged as means.

    ``metrics`` maps a name to (sum, count).
    """

    total: Tensor
    count: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Learner:
    """Owns the optimizer and the rules of an update.

    Args:
        optimizer: what is trained.
        max_grad_norm: gradients are clipped to this joint norm.
    """

    def __init__(self, optimizer: MasterAdamW, max_grad_norm: float = 1.0) -> None:
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm

    def update(
        self, batches: Sequence[Batch], count: float, loss_of: Callable[[Batch], Loss], scale: float
    ) -> dict[str, float]:
        """One step on the mean loss over all micro-batches.

        ``count`` is the global number of items in ``batches``; dividing every micro-batch's sum by it makes
        1 x 8 and 8 x 1 the same step. ``scale`` multiplies the peak learning rates.
        Returns the mean loss, the gradient norm before clipping, and the batches' metrics as means.

        Raises:
            TrainingStopped: the loss or the gradient is not finite; the weights are left as they were.
        """
        sums: dict[str, tuple[float, float]] = {}
        for batch in batches:
            loss = loss_of(batch)
            (loss.total / count).backward()
            for name, (total, number) in {"loss": (loss.total.item(), loss.count), **loss.metrics}.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + number)
        norm = self.optimizer.clip_gradients(self.max_grad_norm)
        if not math.isfinite(norm) or not math.isfinite(sums["loss"][0]):
            self.optimizer.zero_grad()
            raise TrainingStopped(
                f"The loss is {sums['loss'][0] / count} and the gradient norm {norm}: training has diverged.",
                remedy="Lower the learning rate, or look for a broken sample in the data; the last checkpoint is kept.",
            )
        self.optimizer.step(scale)
        return {name: total / max(number, 1e-9) for name, (total, number) in sums.items()} | {
            "grad_norm": norm
        }

"""One optimizer step: accumulate micro-batches, clip, update. Every stage goes through here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

from torch import Tensor, nn

from nestling.compute.process import tidy_memory
from nestling.compute.workers import Workers
from nestling.errors import TrainingStopped
from nestling.training.optimizer import MasterAdamW, ParameterGroup

Batch = TypeVar("Batch")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Loss:
    """A micro-batch's loss as a sum over ``count`` items (tokens, rankings), with sums to be logged as means.

    ``metrics`` maps a name to (sum, count).
    """

    total: Tensor
    count: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def same_weights(network: Network) -> tuple[Network, dict[int, nn.Parameter]]:
    """A network of its own around the same weights, and its parameters by the ``id`` of those they share them with.

    Gradients are its own, and what changes the weights in place changes both.
    """
    memo: dict[int, Any] = {id(b): b for b in network.buffers()}
    # What a module holds besides weights and modules (settings, a tokenizer) is not copied either.
    memo |= {id(v): v for m in network.modules() for name, v in vars(m).items() if not name.startswith("_")}
    leaves = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo | leaves), leaves


class Learner(Generic[Network]):
    """Owns the optimizer and the rules of an update.

    Args:
        network: what losses are computed with.
        groups: what of it is trained.
        max_grad_norm: each network's gradients are clipped to this joint norm.
        workers: who computes; ``networks`` holds one network for each.
        betas: Adam's.
    """

    def __init__(
        self, network: Network, groups: Sequence[ParameterGroup], max_grad_norm: float = 1.0,
        workers: Workers | None = None, betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:  # fmt: skip
        self.workers, self.max_grad_norm = workers or Workers(), max_grad_norm
        self.networks, leaves = [network], []
        if self.workers.count > 1:
            pairs = [same_weights(network) for _ in range(self.workers.count)]
            self.networks, leaves = [copied for copied, _ in pairs], [own for _, own in pairs]
        self.optimizer = MasterAdamW(groups, betas, leaves=leaves)

    def update(
        self, batches: Sequence[Batch], count: float, loss_of: Callable[[Network, Batch], Loss], scale: float
    ) -> dict[str, float]:
        """One step on the mean loss over all micro-batches: ``gradients``, then ``apply``."""
        means = self.gradients(batches, count, loss_of)
        return means | self.apply(scale)

    def gradients(
        self, batches: Sequence[Batch], count: float, loss_of: Callable[[Network, Batch], Loss]
    ) -> dict[str, float]:
        """Gather the gradient of the mean loss over all micro-batches; returns that loss and their metrics as means.

        ``count`` is what sums are divided by, the number of items in all ``batches``: dividing every micro-batch's
        sum by it makes 1 x 8 and 8 x 1 the same step. A micro-batch may count none (PPO's demonstrations): what it
        adds to the loss comes on top of the others' mean.

        Raises:
            TrainingStopped: the loss is not finite; the gradients are forgotten.
        """

        def backward(worker: int, numbered: tuple[int, Batch]) -> dict[str, tuple[float, float]]:
            number, batch = numbered
            with self.optimizer.row(worker, number, self.workers.stopping.is_set):
                loss = loss_of(self.networks[worker], batch)
                (loss.total / count).backward()
            return {"loss": (loss.total.item(), loss.count), **loss.metrics}

        sums: dict[str, tuple[float, float]] = {}
        try:
            found = self.workers.map(backward, list(enumerate(batches)))
        except BaseException:  # Ctrl-C too: what some rows have left must not enter another update
            self.optimizer.zero_grad()
            raise
        for metrics in found:
            for name, (total, number) in metrics.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + number)
        means = {name: total / max(number, 1e-9) for name, (total, number) in sums.items()}
        if not math.isfinite(means["loss"]):
            self._diverged(f"loss is {means['loss']}")
        return means

    def apply(self, scale: float) -> dict[str, float]:
        """Clip the gathered gradients and update; ``scale`` multiplies the peak learning rates.

        Returns the gradient's norm before clipping: ``grad_norm``, and ``critic_grad_norm`` of a network "critic".

        Raises:
            TrainingStopped: the gradient is not finite; the weights are left as they were.
        """
        norms = self.optimizer.clip_gradients(self.max_grad_norm)
        for network, norm in norms.items():
            if not math.isfinite(norm):
                self._diverged(f"gradient's norm of the {network} is {norm}")
        self.optimizer.step(scale)
        tidy_memory()
        return {"grad_norm" if name == "model" else f"{name}_grad_norm": norm for name, norm in norms.items()}

    def _diverged(self, what: str) -> NoReturn:
        self.optimizer.zero_grad()
        raise TrainingStopped(
            f"The {what}: training has diverged.",
            remedy="Lower the learning rate, or look for a broken sample in the data. What was saved before is kept.",
        )

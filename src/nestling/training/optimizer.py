"""AdamW on fp32 masters of parameters that compute in a smaller format.

A bf16 weight has 8 bits of mantissa: an update of 1e-6 would vanish in it. So the optimizer owns an fp32 copy of
every trained parameter, gradients are accumulated in fp32 as they appear, and after each step the compute weights are
the masters rounded. Where a parameter is fp32 already, it is its own master.

Several workers run backward passes at the same time, each on leaves of its own around the same weights. Their
gradients are added in the order of the rows, whoever is done first: the sum is the one a single worker would get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nestling.errors import ConfigError


@dataclass(frozen=True)
class ParameterGroup:
    """Named parameters that share a peak learning rate.

    ``network`` says what they are part of: gradients are clipped by the norm over each network, so that a critic's
    never scale its policy's.
    """

    parameters: dict[str, nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    network: str = "model"


def trainable(module: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    """A module's parameters that want gradients, by name."""
    return {prefix + name: p for name, p in module.named_parameters() if p.requires_grad}


class _Queue:
    """Lets rows add to a parameter's gradient one after another, by their numbers."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._due: dict[str, int] = {}  # the row whose turn it is, by parameter
        self._row: dict[int, int] = {}  # what each worker is at
        self._stopped: Callable[[], bool] = lambda: False

    def begin(self, worker: int, row: int, stopped: Callable[[], bool]) -> None:
        self._row[worker], self._stopped = row, stopped

    @contextmanager
    def turn(self, worker: int, name: str) -> Iterator[None]:
        """Waits for the worker's turn; at once where it has had it, or was never given a row."""
        row = self._row.get(worker)
        if row is None or self._due.get(name, 0) > row:
            yield
            return
        with self._changed:
            while self._due.get(name, 0) < row and not self._stopped():
                self._changed.wait(0.1)  # the row before it may have failed
        yield
        with self._changed:
            self._due[name] = row + 1
            self._changed.notify_all()


_PIECE = 2**17
"""Numbers added in one go."""


def _add(total: Tensor, part: Tensor) -> None:
    """total += part in another format, piece by piece: torch converts all of ``part`` before it adds, and what is
    converted should still be in the cache then (28 million numbers: 21 ms instead of 96)."""
    for own, other in zip(total.view(-1).split(_PIECE), part.reshape(-1).split(_PIECE), strict=True):
        own.add_(other)


def _clip(masters: Iterable[Tensor], max_norm: float) -> float:
    gradients = [master.grad for master in masters if master.grad is not None]
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(gradient)) ** 2 for gradient in gradients))
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019). Weight decay touches matrices only.

    Args:
        groups: what to train; a name may stand in one group only.
        betas, eps: Adam's.
        leaves: for each worker, the parameters that its backward passes reach, by the ``id`` of the parameter whose
            weights they share; none when the parameters themselves are used.

    Attributes:
        steps: how many this object has taken.
    """

    def __init__(
        self, groups: Iterable[ParameterGroup], betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        leaves: Sequence[Mapping[int, nn.Parameter]] = (),
    ) -> None:  # fmt: skip
        self.steps = 0
        self._accumulated: set[str] = set()  # gradients that are gathered in fp32, by name
        self._unwritten: set[str] = set()  # those of them that still hold the step's before
        self.parameters: dict[str, nn.Parameter] = {}
        self.masters: dict[str, Tensor] = {}
        self._networks: dict[str, list[Tensor]] = {}
        self._hooks: list[RemovableHandle] = []
        self._leaves, self._queue = leaves, _Queue()
        adam_groups: list[dict[str, Any]] = []
        for group in groups:
            for matrices in (True, False):
                named = {n: p for n, p in group.parameters.items() if (p.dim() >= 2) == matrices}
                if not named:
                    continue
                self.parameters |= named
                masters = {name: self._master(name, p) for name, p in named.items()}
                self.masters |= masters
                self._networks.setdefault(group.network, []).extend(masters.values())
                rates = {"lr": group.learning_rate, "peak": group.learning_rate}
                decay = group.weight_decay if matrices else 0.0
                adam_groups.append({"params": list(masters.values()), "weight_decay": decay, **rates})
        self._adam = torch.optim.AdamW(adam_groups, betas=betas, eps=eps, fused=True)
        for master in self.masters.values():
            moments = {key: torch.zeros_like(master) for key in ("exp_avg", "exp_avg_sq")}
            self._adam.state[master] = {"step": torch.zeros((), device=master.device), **moments}

    def _master(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The fp32 copy. What lives as long as the run (gradient and moments too) is allocated before the first
        activation: laid among those, it would leave holes that no later one fits (peak 11.8 instead of 5 GB after
        122 steps)."""
        own = parameter.dtype == torch.float32
        if own and not self._leaves:
            return parameter
        master = parameter if own else parameter.detach().float().clone()
        gradient = master.grad = torch.zeros_like(master)
        for worker, leaf in enumerate([copies[id(parameter)] for copies in self._leaves] or [parameter]):

            def accumulate(p: Tensor, worker: int = worker) -> None:
                if p.grad is not None:
                    with self._queue.turn(worker, name):
                        if name in self._unwritten:  # zeroing and reading the zeros were 4 % of a step
                            gradient.copy_(p.grad)
                            self._unwritten.remove(name)
                        else:
                            _add(gradient, p.grad)
                    p.grad = None

            self._accumulated.add(name)
            self._hooks.append(leaf.register_post_accumulate_grad_hook(accumulate))
        return master

    @contextmanager
    def row(self, worker: int, number: int, stopped: Callable[[], bool]) -> Iterator[None]:
        """Within, ``worker`` runs the backward pass of row ``number``, counted from 0 in each step.

        Every row before it must be run too, by this or another worker.
        """
        if not self._leaves:  # one worker, one row after another
            yield
            return
        self._queue.begin(worker, number, stopped)
        yield
        for name in self.parameters:
            with self._queue.turn(worker, name):
                pass  # what this row gave no gradient passes its turn on

    def close(self) -> None:
        """Let go of the parameters: from now on their gradients are another optimizer's."""
        for hook in self._hooks:
            hook.remove()

    def clip_gradients(self, max_norm: float) -> dict[str, float]:
        """Scale each network's gradients so that their joint 2-norm is at most ``max_norm``; the norms before."""
        self._finish_gradients()
        return {network: _clip(masters, max_norm) for network, masters in self._networks.items()}

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients at ``scale`` times each group's peak rate and round the masters into the model."""
        self._finish_gradients()
        for group in self._adam.param_groups:
            group["lr"] = group["peak"] * scale
        self._adam.step()
        self.steps += 1
        self.zero_grad()
        self.publish()

    def _finish_gradients(self) -> None:
        """What no row of this step reached has no gradient."""
        for name in self._unwritten:
            gradient = self.masters[name].grad
            assert gradient is not None
            gradient.zero_()
        self._unwritten = set()

    def zero_grad(self) -> None:
        """Forget the gradients; those gathered in fp32 are written over by the next row."""
        self._unwritten = set(self._accumulated)
        for name, master in self.masters.items():
            if name not in self._accumulated and master.grad is not None:
                master.grad.zero_()
        self._queue = _Queue()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the compute weights."""
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state(self) -> dict[str, Tensor]:
        """Masters, both moments and the step count, by name."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            tensors[f"master/{name}"] = master.detach()
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises:
            ConfigError: other weights were trained there, as with another number of frozen blocks.
        """
        theirs = {key.removeprefix("master/") for key in tensors if key.startswith("master/")}
        if theirs != self.masters.keys():
            raise ConfigError(
                f"the checkpoint is of a training of {len(theirs)} weights, this one trains {len(self.masters)}.",
                remedy="Use a new folder for other settings.",
            )
        for name, master in self.masters.items():
            master.copy_(tensors[f"master/{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"step/{name}" in tensors:
                self._adam.state[master] = {
                    key: tensors[f"{key}/{name}"].to(master.device, copy=True) for key in keys
                }
        self.publish()

"""Demonstrations in PPO's updates: what is not rewarded is not unlearnt either (PPO-ptx, Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nestling.data.packing import pack, walk
from nestling.model.decoder import Decoder
from nestling.model.rows import Row, common_prefix, pack_row
from nestling.text.samples import TokenSample
from nestling.training.learner import Loss
from nestling.training.sft import sample_loss


@dataclass(frozen=True)
class Rehearsed:
    """A row of demonstrations whose summed loss counts ``weight`` times in an update's sum."""

    row: Row
    weight: float

    def loss(self, policy: Decoder) -> Loss:
        """Its loss; in an update's means it counts no tokens of PPO."""
        own = sample_loss(policy, self.row)
        return Loss(self.weight * own.total, 0, {"demonstration_loss": (own.total.item(), own.count)})


class Rehearsal:
    """Deals demonstrations to updates: an endless walk through all of them, in a new order each time around.

    An update that is not made, as one that would move too far, leaves its demonstrations out of that round.

    Args:
        samples: the demonstrations.
        tokens: about how many an update gets, over all workers.
        workers: each gets a row.
        coef: what the demonstrations' mean loss a token weighs beside PPO's.
    """

    def __init__(
        self, samples: Sequence[TokenSample], tokens: int, workers: int, coef: float, seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        common = common_prefix([list(s.ids) for s in samples])
        lengths = [max(1, len(s.ids) - common) for s in samples]
        self._rows = pack(lengths, max(tokens // workers, *lengths))
        self._samples, self._workers, self._coef = samples, workers, coef
        self._seed, self._device = seed, device

    def of_update(self, number: int, count: float) -> list[Rehearsed]:
        """The rows of update ``number``, weighed for a sum that is divided by ``count``."""
        chosen = walk(len(self._rows), self._seed, number * self._workers, (number + 1) * self._workers)
        rows = [pack_row([self._samples[i] for i in self._rows[at]], self._device) for at in chosen]
        targets = sum(len(row.targets) for row in rows)
        return [Rehearsed(row, self._coef * count / targets) for row in rows]

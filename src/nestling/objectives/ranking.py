"""Likelihood of a ranking under scalar scores: the reward model's loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def all_pairs_nll(scores: Tensor, ranks: Tensor) -> Tensor:
    """Bradley-Terry over every pair that is not a tie, averaged over pairs (Ouyang et al. 2022).

    scores [K]; ranks [K], 1 is best, equal ranks are ties. Returns a scalar; zero when all tie.
    """
    better = ranks[:, None] < ranks[None, :]
    if not bool(better.any()):
        return scores.sum() * 0
    margins = scores[:, None] - scores[None, :]
    return -F.logsigmoid(margins[better]).mean()


def plackett_luce_nll(scores: Tensor, ranks: Tensor) -> Tensor:
    """Plackett-Luce: the best is chosen among all, the next among the rest, and so on (Luce 1959, Plackett 1975).

    scores [K]; ranks [K], 1 is best. A tied group is chosen against the group and everything below it, each member
    on its own (Breslow's approximation), so the order within a tie never matters. Returns a scalar, the sum over
    choices; the lowest group makes no choice.
    """
    remaining = ranks[None, :] >= ranks[:, None]
    log_total = scores[None, :].expand(len(scores), -1).masked_fill(~remaining, -torch.inf).logsumexp(-1)
    choosing = ranks < ranks.max()
    return (log_total - scores)[choosing].sum()


def pair_accuracy(scores: Tensor, ranks: Tensor) -> tuple[int, int]:
    """(pairs ordered rightly, pairs that are not ties); equal scores count as wrong."""
    better = ranks[:, None] < ranks[None, :]
    right = (scores[:, None] > scores[None, :]) & better
    return int(right.sum()), int(better.sum())

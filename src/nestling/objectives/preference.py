"""Direct preference losses on sequence log-probabilities; all arguments and results are [N]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023).

    ``kind`` is sigmoid (with ``label_smoothing``: conservative DPO, Mitchell 2023), ipo (Azar et al. 2023) or hinge
    (SLiC, Zhao et al. 2023).
    """
    margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    if kind == "sigmoid":
        smooth = label_smoothing
        return -(1 - smooth) * F.logsigmoid(beta * margin) - smooth * F.logsigmoid(-beta * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return (1 - beta * margin).clamp_min(0)
    raise ValueError(f"unknown preference loss {kind!r}")


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    good: Tensor,
    drift: Tensor,
    beta: float = 0.1,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): answers labelled good or bad, without pairs.

    ``good`` is boolean. ``drift`` (scalar, nats, never negative) is what answers in general have gained under the
    policy, estimated on answers to other prompts; it is a point of comparison and gets no gradient.
    """
    gain = policy - reference
    drift = drift.detach().clamp_min(0)
    value = torch.where(good, torch.sigmoid(beta * (gain - drift)), torch.sigmoid(beta * (drift - gain)))
    weight = torch.where(good, good_weight, bad_weight)
    return weight * (1 - value)

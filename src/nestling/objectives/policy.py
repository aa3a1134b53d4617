"""PPO's losses (Schulman et al. 2017) and the distance between two policies, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    dual_clip: float | None = 3.0,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate objective, to be minimised.

    All [N]. The ratio of the policies is the importance weight that lets old experience be used again. ``dual_clip``
    bounds the loss where the advantage is negative and the ratio has run away (Ye et al. 2020).
    Returns (loss [N], clipped [N] bool: the clip decided).
    """
    ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        runaway = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(runaway, ceiling, loss), clipped | runaway
    return loss, clipped


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Half squared error, pessimistic about moves beyond ``clip`` from the old value.

    All [N]. Returns (loss [N], clipped [N] bool: the bounded prediction was the worse one).
    """
    plain = (values - returns) ** 2
    bounded = (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2
    return 0.5 * torch.maximum(plain, bounded), bounded > plain


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy (Schulman 2020), shapes equal.

    k1 is unbiased and can be negative, k2 is half the squared log-ratio, k3 is unbiased and never negative.
    """
    log_ratio = logprobs - reference_logprobs
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"unknown KL estimator {kind!r}")


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 no better than a constant, below 0 worse."""
    variance = returns.var(correction=0)
    return 1 - (returns - values).var(correction=0) / variance.clamp_min(1e-8)

"""From rewards to advantages."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) over right-padded answers.

    rewards, values, mask: [B, L]; mask is True on answer tokens, which start at column 0. ``bootstrap`` [B] is the
    value of the state after the last token: zero where the answer ended by itself (the default everywhere), the
    critic's estimate where it was cut and the cut should not count as an end.
    Returns (advantages, returns), both [B, L], zero outside the mask; returns = advantages + values.
    """
    lengths = mask.sum(-1)
    after = (
        torch.zeros(len(rewards), dtype=rewards.dtype, device=rewards.device)
        if bootstrap is None
        else bootstrap
    )
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(after)
    for t in reversed(range(rewards.shape[1])):
        last = lengths == t + 1
        next_value = torch.where(last, after, values[:, t + 1] if t + 1 < rewards.shape[1] else after)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = delta + gamma * lam * torch.where(last, torch.zeros_like(running), running)
        running = torch.where(mask[:, t], running, torch.zeros_like(running))
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Scale to zero mean and unit population variance over the mask; zero outside."""
    chosen = values[mask]
    mean, std = chosen.mean(), chosen.std(correction=0)
    scaled = (values - mean) / (std + 1e-8)
    return scaled * mask


def leave_one_out(rewards: Tensor) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024). rewards [prompts, K] -> the same shape, K of at least 2."""
    k = rewards.shape[-1]
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (k - 1)


def group_relative(rewards: Tensor, divide_by_std: bool = True) -> Tensor:
    """GRPO's advantages (Shao et al. 2024); without the division Dr. GRPO's (Liu et al. 2025). Shape [prompts, K]."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-8) if divide_by_std else centred

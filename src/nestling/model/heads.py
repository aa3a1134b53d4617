"""A scalar on top of a hidden state: the reward model's score and PPO's value."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """One number per hidden state, computed in fp32 whatever the trunk's dtype. Starts at zero."""

    def __init__(self, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(())) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., hidden_size] -> [...]."""
        out = hidden.float() @ self.weight
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def fit(self, hidden: Tensor, targets: Tensor, ridge: float = 1.0) -> None:
        """Set the head to the ridge regression of targets [N] on hidden [N, hidden_size], in closed form.

        A zero-initialised value head at a small rate never catches up with a moving policy; this one starts
        where least squares would end. The bias, when there is one, is not penalised.
        """
        x, y = hidden.cpu().double(), targets.cpu().double()  # some accelerators have no float64
        centre, mean = (
            (x.mean(0), y.mean()) if self.bias is not None else (torch.zeros_like(x[0]), y.new_zeros(()))
        )
        x = x - centre
        scale = x.pow(2).mean()
        gram = x.T @ x + ridge * len(x) * scale * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(gram, x.T @ (y - mean))
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(mean - centre @ weight)

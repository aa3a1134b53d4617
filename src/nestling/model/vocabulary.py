"""Log-probabilities of given tokens, without ever holding fp32 logits of all of them.

With a 49,152-word vocabulary the output layer is a fifth of a small model's work and most of its activation memory.
Only tokens that are asked about are projected, in chunks; the logits are kept in the compute dtype for the backward
pass and every softmax is taken in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 256  # tokens; fp32 scratch of 256 x 49,152 is 50 MB


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        kept: list[Tensor] = []
        for start in range(0, len(targets), _CHUNK):
            part = slice(start, start + _CHUNK)
            raw = hidden[part] @ weight.T
            logits = raw.to(torch.float32, copy=True).div_(temperature)
            log_z = logits.logsumexp(-1)
            normaliser[part] = log_z
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - log_z
            # H = log Z - E[logit]
            entropy[part] = log_z - (torch.exp(logits - log_z[:, None]) * logits).sum(-1)
            kept.append(raw)
        ctx.save_for_backward(hidden, weight, targets, normaliser, *kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, targets, normaliser, *kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for number, raw in enumerate(kept):
            part = slice(number * _CHUNK, number * _CHUNK + _CHUNK)
            # d logprob / d logits = (onehot - softmax) / temperature
            slope = (
                raw.to(torch.float32, copy=True)
                .div_(ctx.temperature)
                .sub_(normaliser[part, None])
                .exp_()
                .neg_()
            )
            slope[torch.arange(len(slope), device=slope.device), targets[part]] += 1
            slope *= (grads[0][part] / ctx.temperature)[:, None]
            slope = slope.to(hidden.dtype)
            grad_hidden[part] = slope @ weight
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[part]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Natural-log probability of each target and the entropy of its distribution.

    hidden: [N, hidden_size], the states that predict; weight: [vocab_size, hidden_size]; targets: [N] token ids.
    Returns fp32 (logprobs [N], entropy [N]); gradients flow through the log-probabilities only.
    """
    logprobs, entropy = _TokenLogprobs.apply(hidden, weight, targets, temperature)
    return logprobs, entropy

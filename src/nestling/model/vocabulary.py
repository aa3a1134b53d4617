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
        raw = torch.empty(len(targets), len(weight), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(targets), _CHUNK):
            part = slice(start, start + _CHUNK)
            torch.mm(hidden[part], weight.T, out=raw[part])
            logits = raw[part].to(torch.float32, copy=True).div_(temperature)
            log_z = logits.logsumexp(-1)
            normaliser[part] = log_z
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - log_z
            # H = log Z - E[logit]
            entropy[part] = log_z - (torch.exp(logits - log_z[:, None]) * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.raw, ctx.temperature = raw, temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        if ctx.raw is None:
            raise RuntimeError("token_logprobs keeps its logits for one backward pass only.")
        slope, ctx.raw = ctx.raw, None  # overwritten chunk by chunk with the gradient
        for start in range(0, len(targets), _CHUNK):
            part = slice(start, start + _CHUNK)
            # d logprob / d logits = (onehot - softmax) / temperature
            piece = slope[part].to(torch.float32, copy=True).div_(ctx.temperature)
            piece.sub_(normaliser[part, None]).exp_().neg_()
            piece[torch.arange(len(piece), device=piece.device), targets[part]] += 1
            slope[part] = piece.mul_((grads[0][part] / ctx.temperature)[:, None])
        grad_weight = slope.T @ hidden if ctx.needs_input_grad[1] else None
        return slope @ weight, grad_weight, None, None


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Natural-log probability of each target and the entropy of its distribution.

    hidden: [N, hidden_size], the states that predict; weight: [vocab_size, hidden_size]; targets: [N] token ids.
    Returns fp32 (logprobs [N], entropy [N]); gradients flow through the log-probabilities only.
    """
    logprobs, entropy = _TokenLogprobs.apply(hidden, weight, targets, temperature)
    return logprobs, entropy

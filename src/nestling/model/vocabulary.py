"""Log-probabilities of given tokens, without ever holding fp32 logits of all of them.

With a 49,152-word vocabulary the output layer is a fifth of a small model's work and most of its activation memory.
Only tokens that are asked about are projected, in chunks, and every softmax is taken in fp32. What the backward pass
needs of it, probabilities minus one at the target, is kept in the compute dtype: then two products are all that is
left to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CHUNK = 128  # tokens projected at once; their logits take 13 MB in bf16
_PIECE = 8  # of which so many are in fp32 at once: 1.5 MB twice, which the cache holds for the dozen passes over them


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_entropy: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        kept = hidden.new_empty(len(targets) if with_gradient else 0, len(weight))
        for part, logits in _projected(hidden, weight):
            # One exponential a number serves normalisation, entropy and gradient.
            scores = logits.to(torch.float32, copy=True)
            if temperature != 1:
                scores.div_(temperature)
            scores.sub_(scores.amax(-1, keepdim=True))
            exponentials = scores.exp()
            total = exponentials.sum(-1)
            log_total, target = total.log(), targets[part, None]
            logprobs[part] = scores.gather(-1, target)[:, 0] - log_total
            if with_entropy:
                entropy[part] = log_total - torch.linalg.vecdot(exponentials, scores) / total
            if with_gradient:
                probabilities = exponentials.div_(total[:, None])
                # p - 1 where p is the target's: exact also where p is nearly 1.
                kept[part] = probabilities.scatter_(1, target, logprobs[part, None].expm1())
        ctx.save_for_backward(hidden, weight, kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, kept = ctx.saved_tensors
        # d logprob / d logits = (onehot - softmax) / temperature
        scale = (grads[0] / -ctx.temperature)[:, None]
        grad_weight = kept.T @ (hidden * scale).to(kept.dtype) if ctx.needs_input_grad[1] else None
        return ((kept @ weight) * scale).to(hidden.dtype), grad_weight, None, None, None, None


def _projected(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Where in ``hidden`` each piece lies, and its logits."""
    for start in range(0, len(hidden), _CHUNK):
        for number, logits in enumerate((hidden[start : start + _CHUNK] @ weight.T).split(_PIECE)):
            first = start + number * _PIECE
            yield slice(first, first + len(logits)), logits


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Natural-log probability of each target, fp32 [N].

    hidden: [N, hidden_size], the states that predict; weight: [vocab_size, hidden_size]; targets: [N] token ids.
    """
    return _apply(hidden, weight, targets, temperature, with_entropy=False)[0]


def token_logprobs_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As ``token_logprobs``, and the entropy of each target's distribution in nats, fp32 [N], without gradients."""
    return _apply(hidden, weight, targets, temperature, with_entropy=True)


def _apply(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    logprobs, entropy = _TokenLogprobs.apply(
        hidden, weight, targets, temperature, with_entropy, with_gradient
    )
    return logprobs, entropy

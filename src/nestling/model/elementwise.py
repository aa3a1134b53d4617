"""RMSNorm and rotary positions with backward passes written out.

Both are bound by memory, not arithmetic: what counts is how often the activations are read and what is kept for the
backward pass. At [2040, 576] in bf16 on two CPU cores, RMSNorm forward and backward takes 5.2 ms, PyTorch's 6.8; and
it keeps bf16 where autograd keeps fp32. The forward formulas are the same with and without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension (Zhang and Sennrich 2019), the statistics in fp32."""
    if torch.is_grad_enabled():
        out: Tensor = _RMSNorm.apply(x, weight, eps)
        return out
    return _normalised(x, eps)[0] * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [T, H, D] by its position's angles (Su et al. 2021), channel i paired with channel i + D / 2.

    cos, sin: [T, 1, D], both halves alike.
    """
    if torch.is_grad_enabled():
        out: Tensor = _Rotate.apply(x, cos, sin)
        return out
    return _rotated(x, cos, sin)


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x at unit root mean square, in x's dtype, and the fp32 factor [..., 1] that took it there."""
    precise = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    factor = torch.rsqrt(length.square() / x.shape[-1] + eps)
    return (x * factor).to(x.dtype), factor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        unit, factor = _normalised(x, eps)
        ctx.save_for_backward(unit, factor, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None]:
        unit, factor, weight = ctx.saved_tensors
        grad = grads[0]
        along = grad * weight
        # d x = factor * (along - unit * mean(along * unit)): what lengthens x changes nothing.
        mean = (along * unit).mean(-1, keepdim=True)
        grad_x = (torch.addcmul(along, unit, mean, value=-1) * factor).to(grad.dtype)
        grad_weight = (grad * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None  # turn back

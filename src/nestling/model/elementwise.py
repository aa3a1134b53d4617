"""RMSNorm, rotary positions and the gated activation, with backward passes written out.

What they cost is arithmetic value by value and conversions between formats, and what counts besides is how much they
keep for the backward pass. Operations that mix bf16 and fp32 are the slowest of all, as they convert value by value:
what needs fp32 is converted once, worked on in place, and rounded once. The forward formulas are the same with and
without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension (Zhang and Sennrich 2019), the statistics in fp32."""
    if torch.is_grad_enabled():
        out: Tensor = _RMSNorm.apply(x, weight, eps)
        return out
    return _normalised(x, eps)[0] * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [T, H, D] by its position's angles (Su et al. 2021), channel i paired with channel i + D / 2.

    cos, sin: [T, 1, D], both halves alike but for the sign: minus the sine in the first.
    """
    if torch.is_grad_enabled():
        out: Tensor = _Rotate.apply(x, cos, sin)
        return out
    return _rotated(x, cos, sin)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020), keeping no more than its arguments for the backward pass."""
    if torch.is_grad_enabled():
        out: Tensor = _Gated.apply(gate, up)
        return out
    return F.silu(gate).mul_(up)


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x at unit root mean square, in x's dtype, and the factor [..., 1] in fp32 or better that took it there."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
    length = torch.linalg.vector_norm(precise, dim=-1, keepdim=True)
    factor = torch.rsqrt(length.square() / x.shape[-1] + eps)
    return precise.mul_(factor).to(x.dtype), factor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        unit, factor = _normalised(x, eps)
        ctx.save_for_backward(unit, factor, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None]:
        kept, factor, weight = ctx.saved_tensors
        unit, along = kept.to(factor.dtype), grads[0].to(factor.dtype, copy=True)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (along * unit).flatten(0, -2).sum(0).to(weight.dtype)
        along.mul_(weight)
        # d x = factor * (along - unit * mean(along * unit)): what lengthens x changes nothing.
        mean = torch.linalg.vecdot(along, unit).unsqueeze(-1).div_(unit.shape[-1])
        return along.addcmul_(unit, mean, value=-1).mul_(factor).to(kept.dtype), grad_weight, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return grad_gate, F.silu(gate).mul_(grads[0])


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None  # turn back

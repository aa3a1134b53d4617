"""Low-rank adapters (Hu et al. 2021): train two thin matrices beside each frozen one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Linear):
    """y = W x + (alpha / rank) B A x. ``weight`` keeps its name, so state dicts stay model files plus adapters."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float
    enabled: bool

    @classmethod
    def wrap(cls, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> LoRALinear:
        with torch.device("meta"):
            adapted = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        adapted.weight, adapted.bias = linear.weight, linear.bias
        bound = 1 / math.sqrt(linear.in_features)
        a = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        adapted.lora_a = nn.Parameter(a.to(linear.weight))
        adapted.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        adapted.scale, adapted.enabled = alpha / rank, True
        return adapted

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b) if self.enabled else out

    @torch.no_grad()
    def merged(self, share: float = 1.0) -> nn.Linear:
        """A plain layer with ``share`` of what the adapter does added into its weight."""
        delta = share * self.scale * (self.lora_b.float() @ self.lora_a.float())
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight = nn.Parameter((self.weight.float() + delta).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, rank: int, alpha: float, seed: int = 0) -> None:
    """Freeze ``model`` and put adapters on all its linear layers."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, LoRALinear.wrap(owner.get_submodule(child), rank, alpha, generator))  # type: ignore[arg-type]


def merge_lora(model: nn.Module, share: float = 1.0) -> None:
    """Replace every adapted layer by a plain one with ``share`` of the adapter merged in; all can be trained again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.merged(share))
    for parameter in model.parameters():
        parameter.requires_grad_(True)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, the model is the frozen one it started from: the free reference of PPO with LoRA."""
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True

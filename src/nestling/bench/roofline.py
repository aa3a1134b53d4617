"""What a step must compute at least, and how near it comes to what the machine can do.

Floating-point operations of matrix products only, two for a multiplication with its addition; attention's included,
norms and activations not. Peaks are measured: the best of many large products, and a plain copy of memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nestling.compute.device import Hardware, product_rate
from nestling.model.config import ModelConfig


@dataclass(frozen=True)
class Peaks:
    """Best rates of this machine, all its workers together: FLOP/s of products, bytes/s read from memory."""

    flops: float
    bandwidth: float


def peak_flops(hardware: Hardware, turns: int = 6, size: int = 1024) -> float:
    """The best of several short turns of large products."""
    return max(product_rate(hardware, size, size, size, seconds=0.15) for _ in range(turns))


def measure_peaks(hardware: Hardware, turns: int = 6, size: int = 1024) -> Peaks:
    """Products, and reading 256 MiB, which no cache holds; every worker at once."""
    big, workers = torch.ones(1 << 26), hardware.side_by_side()

    def read(_: int, __: int) -> float:
        start = time.perf_counter()
        big.sum()
        return big.numel() * big.element_size() / (time.perf_counter() - start)

    bandwidth = max(sum(workers.map(read, list(range(workers.count)))) for _ in range(turns))
    return Peaks(peak_flops(hardware, turns, size), bandwidth)


@dataclass(frozen=True)
class Shape:
    """Parameters that products read: the blocks', and the output layer's; and attention's width over all layers."""

    body: int
    head: int
    attention: int

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        queries, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        block = config.hidden_size * (2 * queries + 2 * shared + 3 * config.intermediate_size)
        head = config.vocab_size * config.hidden_size
        return cls(config.num_layers * block, head, config.num_layers * queries)

    def forward(self, tokens: float, asked: float, past: float) -> float:
        """Operations of a forward pass over ``tokens``, ``asked`` of them through the output layer, each looking back
        at ``past`` tokens on average."""
        return 2 * (tokens * self.body + asked * self.head) + 4 * tokens * past * self.attention

    def training(self, tokens: float, asked: float, past: float) -> float:
        """Forward and backward."""
        return 3 * self.forward(tokens, asked, past)


def ppo_flops(shape: Shape, answers: int, prompt: int, answer: int, critic: str) -> dict[str, float]:
    """An iteration of one epoch and one minibatch, one answer a prompt: its products by phase.

    The scoring pass is the update's own forward pass, so policy (and critic) are read once.
    """
    tokens, asked = answers * (prompt + answer), answers * answer
    past = (prompt + answer) / 2
    networks = 2 if critic == "separate" else 1
    update = shape.training(tokens, asked, past) + (networks - 1) * shape.training(tokens, 0, past)
    scoring = shape.forward(tokens, asked, past) + shape.forward(tokens, 0, past)  # reference, reward model
    reading = shape.forward(answers * prompt, answers, prompt / 2)
    writing = shape.forward(asked, asked, prompt + answer / 2)
    return {"generating": reading + writing, "rest": update + scoring}


def step_flops(shape: Shape, lengths: Sequence[int], asked: int) -> float:
    """A training step over sequences of these lengths."""
    return sum(shape.training(n, 0, n / 2) for n in lengths) + shape.training(0, asked, 0)


def decode_seconds(shape: Shape, peaks: Peaks, rows: int, tokens: int, past: float, width: int) -> float:
    """The least that ``tokens`` decode steps of ``rows`` sequences can take: products, or reading the weights."""
    computing = shape.forward(rows, rows, past) / peaks.flops
    reading = (shape.body + shape.head) * width / peaks.bandwidth
    return tokens * max(computing, reading)

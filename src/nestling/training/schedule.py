"""How the learning rate moves over a run, as a multiple of its peak."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine"]


def rate_scale(step: int, total: int, warmup: int, kind: ScheduleName, floor: float = 0.1) -> float:
    """Scale of step ``step`` (from 0) out of ``total``: linear warm-up, then constant or falling to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    falling = 1 - progress if kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (1 - floor) * falling

"""Whether what saves time changes what is learned: our PPO by several settings, from one start, over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.bench.race import ANSWER_TOKENS, ANSWERS, HELD_OUT, OURS, Runner
from nestling.bench.report import machine
from nestling.compute.device import Hardware
from nestling.workspace import atomic

USUAL = "as in the race"
USUALLY = next(iter(OURS.values()))


def variants(hardware: Hardware) -> dict[str, dict[str, Any]]:
    """The settings that are compared, by name.

    Only what is not bit for bit the same anyway: packing, shared prompts, the scoring pass that is the first update's
    and packed matrices change no bit, which tests show.
    """
    adapted = USUALLY | {"lora": {"rank": 16, "alpha": 32}, "learning_rate": 3e-4}
    found: dict[str, dict[str, Any]] = {
        USUAL: {"ours": USUALLY},
        "every number in fp32": {"ours": USUALLY, "dtype": "float32"},
        "a critic of its own": {"ours": USUALLY | {"critic": "separate"}},
        "lower half frozen": {"ours": USUALLY | {"frozen_blocks": 15}},
        "LoRA of rank 16 (rate 3e-4)": {"ours": adapted},
    }
    if hardware.threads % 2 == 0:
        other = {1: 2, 2: 1}[hardware.workers]
        found[f"workers: {other} instead of {hardware.workers}"] = {"ours": USUALLY, "workers": other}
    return found


def difference(ours: Sequence[float], usual: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences by seed, and its standard error."""
    paired = [a - b for a, b in zip(ours, usual, strict=True)]
    return statistics.mean(paired), statistics.stdev(paired) / math.sqrt(len(paired))


def write_learning(
    folder: Path, hardware: Hardware, first: float, found: Mapping[str, Sequence[Runner]], command: str
) -> Path:
    """``learning.md``."""
    reached = {name: [runner.curve[-1][1] for runner in runners] for name, runners in found.items()}
    lines = [
        "# The same reward with and without what saves time",
        "",
        f"{machine(hardware)}. Command: `{command}`.",
        "",
        f"{ANSWERS} answers of at most {ANSWER_TOKENS} tokens an iteration; held-out reward of greedy answers to "
        f"{HELD_OUT} prompts nobody trains on, at the start {first:.3f}. Differences are between runs of one seed, "
        "their mean with its standard error.",
        "",
        "| setting | reward at the end, by seed | mean | against the usual | minutes |",
        "|---|---|---:|---|---:|",
    ]
    for name, rewards in reached.items():
        mean, error = difference(rewards, reached[USUAL])
        against = "" if name == USUAL else f"{mean:+.3f} ± {error:.3f}"
        minutes = statistics.median(runner.curve[-1][0] for runner in found[name])
        seeds = ", ".join(f"{reward:.3f}" for reward in rewards)
        lines.append(f"| {name} | {seeds} | {statistics.mean(rewards):.3f} | {against} | {minutes:.1f} |")
    page = folder / "learning.md"
    atomic.write_text(page, "\n".join([*lines, ""]))
    return page

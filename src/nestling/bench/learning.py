"""Whether what saves time changes what is learned: our PPO by several settings, from one start, over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.bench.race import ANSWER_TOKENS, ANSWERS, HELD_OUT, OURS, Runner
from nestling.bench.report import machine
from nestling.compute.device import Hardware
from nestling.workspace import atomic

USUAL = "critic from the reward model, bf16"
SIBLINGS = "answers against their siblings, value head on the policy's trunk"


@dataclass(frozen=True)
class Variant:
    """Settings of a run, and the name of those it is compared with."""

    more: dict[str, Any]
    against: str | None = None


def variants() -> dict[str, Variant]:
    """The settings that are compared, by name.

    Only what is not bit for bit the same anyway: packing, shared prompts, the scoring pass that is the first update's
    and packed matrices change no bit, which tests show.
    """
    critic = OURS["16 answers, critic from the reward model, 1e-4, 1 epoch"]
    siblings = OURS["4 x 4 answers, 1e-4, 1 epoch"]
    adapted = critic | {"lora": {"rank": 16, "alpha": 32}, "learning_rate": 5e-4}
    return {
        USUAL: Variant({"ours": critic}),
        "the same, every number in fp32": Variant({"ours": critic, "dtype": "float32"}, USUAL),
        "the same, lower half frozen": Variant({"ours": critic | {"frozen_blocks": 15}}, USUAL),
        "the same, LoRA of rank 16 (rate 5e-4)": Variant({"ours": adapted}, USUAL),
        SIBLINGS: Variant({"ours": siblings}),
        "the same, critic with a trunk of its own": Variant(
            {"ours": siblings | {"critic": "separate"}}, SIBLINGS
        ),
    }


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
        "| setting | reward at the end, by seed | mean | difference | minutes |",
        "|---|---|---:|---|---:|",
    ]
    for name, rewards in reached.items():
        usual, against = variants()[name].against, ""
        if usual is not None:
            against = "{:+.3f} ± {:.3f}".format(*difference(rewards, reached[usual]))
        minutes = statistics.median(runner.curve[-1][0] for runner in found[name])
        seeds = ", ".join(f"{reward:.3f}" for reward in rewards)
        lines.append(f"| {name} | {seeds} | {statistics.mean(rewards):.3f} | {against} | {minutes:.1f} |")
    page = folder / "learning.md"
    atomic.write_text(page, "\n".join([*lines, ""]))
    return page

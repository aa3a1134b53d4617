"""Under three minutes: each of our steps against plain matrix products timed beside it, to catch what got slower."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.bench.duel import Contender, Player
from nestling.bench.report import processor
from nestling.bench.roofline import peak_flops
from nestling.bench.setting import ANSWER_TOKENS, PPO_PROMPTS, PROMPT_TOKENS, Material
from nestling.workspace import atomic

ALLOWED = 0.10
TURNS, ENOUGH = 4, 15.0  # turns at least, and seconds of turns: short ones vary more


@dataclass(frozen=True)
class Yardstick:
    """A step's time in units of a fixed amount of plain products (1 TFLOP) timed next to it; less is better."""

    name: str
    units: float
    before: float | None

    @property
    def slower(self) -> float:
        """How much longer it takes than when the baseline was written; 0 without one."""
        return self.units / self.before - 1 if self.before else 0.0

    @property
    def lost(self) -> bool:
        return self.slower > ALLOWED


def contenders(material: Material) -> list[Contender]:
    """The steps that are watched."""
    prompts = material.windows(PPO_PROMPTS // 2, PROMPT_TOKENS)  # half a duel's: it is to be quick
    kinds: dict[str, dict[str, Any]] = {
        "ppo": {"kind": "ppo", "critic": "shared", "prompts": prompts, "answer_tokens": ANSWER_TOKENS // 2},
        "decode": {"kind": "decode", "prompts": prompts, "answer_tokens": ANSWER_TOKENS // 2},
        "sft": {"kind": "sft", "conversations": material.conversations()[:1]},
        "reward_model": {"kind": "reward_model", "rankings": material.rankings()[:1]},
    }
    return [Contender(name, "ours", material.write(f"quick-{name}", more)) for name, more in kinds.items()]


def measure(
    material: Material, before: Mapping[str, float], told: Callable[[str], object]
) -> list[Yardstick]:
    """Every step, with the yardstick before and after each of its turns."""
    found = []
    for contender in contenders(material):
        with Player(contender, material.folder / "quick.log") as player:
            player.turn()
            units: list[float] = []
            spent, rate = 0.0, peak_flops(material.hardware, turns=2)
            while len(units) < TURNS or spent < ENOUGH:
                seconds, rate_before = player.turn()["seconds"], rate
                rate, spent = peak_flops(material.hardware, turns=2), spent + seconds
                units.append(seconds * (rate_before + rate) / 2e12)
        # The median: of runs of the same code it differs by up to 5 %, the best turn by up to 30.
        found.append(Yardstick(contender.name, statistics.median(units), before.get(contender.name)))
        told(f"{contender.name}: {found[-1].units:.2f} TFLOP of products in the same time")
    return found


def key(material: Material) -> str:
    """Figures of other processors say nothing about this one."""
    return f"{processor()} / {material.hardware.dtype} / {material.hardware.threads}"


def baseline(material: Material, file: Path) -> dict[str, float]:
    """What was written down for this kind of machine, by step; nothing if nothing was."""
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    figures: dict[str, float] = known.get(key(material), {})
    return figures


def save(material: Material, file: Path, found: Sequence[Yardstick]) -> None:
    """Write down what is measured now as what later changes are held against."""
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    known[key(material)] = {y.name: round(y.units, 3) for y in found}
    atomic.write_json(file, known)

"""How time and memory grow with batch, length, model size and the number of ranked answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from nestling.bench.duel import Contender, Player, quartiles
from nestling.bench.report import CPU_ONLY, GIB, machine
from nestling.bench.setting import PROMPT_TOKENS, SEED, Material, lay_down
from nestling.errors import BenchError
from nestling.evaluation.plots import as_svg, plain
from nestling.model.decoder import Decoder, initialise
from nestling.model.hf_folder import LoadedModel
from nestling.workspace import atomic

WIDTHS = {"135M": (576, 1536, 30, 9, 3), "360M": (960, 2560, 32, 15, 5), "1.7B": (2048, 8192, 24, 32, 32)}
"""Hidden size, inner size, layers, heads and key/value heads of the SmolLM2 family."""


@dataclass(frozen=True)
class Point:
    """One measurement along an axis: median seconds of a turn, peak bytes of its process."""

    value: float
    seconds: float
    peak: int


@dataclass(frozen=True)
class Series:
    """What grows along ``axis``; ``steps`` are (value, setting) pairs of our own contender."""

    name: str
    axis: str
    steps: Sequence[tuple[float, dict[str, Any]]]


def series(material: Material) -> Iterator[Series]:
    """The axes of the report. Each starts from a PPO iteration of 16 x (32 + 64), or a reward model's step."""

    def ppo(answers: int = 16, answer: int = 64, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        prompts = material.windows(answers, PROMPT_TOKENS)
        setting = {"kind": "ppo", "critic": "shared", "prompts": prompts, "answer_tokens": answer}
        return setting | dict(more or {})

    yield Series(
        "PPO iteration, answers", "answers of 32 + 64 tokens", [(n, ppo(n)) for n in (4, 8, 16, 32, 64)]
    )
    yield Series(
        "PPO iteration, length", "tokens of an answer", [(n, ppo(answer=n)) for n in (32, 64, 128, 256)]
    )
    yield Series(
        "reward-model step, candidates", "candidates of 24 rankings",
        [(k, {"kind": "reward_model", "rankings": [_ranked(material, k)]}) for k in (2, 4, 8)],
    )  # fmt: skip
    sizes = [shaped(material, name) for name in WIDTHS]
    yield Series(
        "PPO iteration with LoRA, model size", "parameters in millions",
        [(size / 1e6, ppo(more={"lora": 16} | folders)) for size, folders in sizes],
    )  # fmt: skip


def _ranked(material: Material, k: int) -> list[dict[str, Any]]:
    pieces = material.windows(24 * (1 + 8), 48)
    return [{"prompt": pieces[9 * i], "completions": pieces[9 * i + 1 : 9 * i + 1 + k]} for i in range(24)]


def shaped(material: Material, name: str) -> tuple[int, dict[str, str]]:
    """A policy and a reward model of that size with small random weights: (parameters, their folders)."""
    hidden, inner, layers, heads, kv_heads = WIDTHS[name]
    config = replace(
        material.config, hidden_size=hidden, intermediate_size=inner, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads,
    )  # fmt: skip

    def make() -> LoadedModel:
        decoder = initialise(Decoder(config).to(material.hardware.torch_dtype), SEED)
        return LoadedModel(decoder, material.tokenizer)

    return config.num_parameters(), lay_down(material.folder / f"random-{name}", make)


def measure(
    material: Material, found: Series, turns: int, told: Callable[[str], object]
) -> tuple[list[Point], list[str]]:
    """The points of a series, and what could not be run, each with its reason."""
    points, missing = [], []
    for value, more in found.steps:
        contender = Contender(f"{found.name} {value:g}", "ours", material.write("growth", more))
        try:
            with Player(contender, material.folder / "growth.log") as player:
                player.turn()
                times = [player.turn()["seconds"] for _ in range(turns)]
                points.append(Point(value, quartiles(times)[1], player.peak))
        except BenchError as error:
            missing.append(f"{found.axis} = {value:g}: {error}")
            continue
        told(f"{found.name}: {value:g} -> {points[-1].seconds:.2f} s, {points[-1].peak / GIB:.2f} GiB")
    return points, missing


@dataclass(frozen=True)
class Line:
    """What is measured = fixed + each * value; ``off``: how far it is from a measurement at most, as a share of it."""

    fixed: float
    each: float
    off: float


def line(values: Sequence[float], measured: Sequence[float]) -> Line:
    """The line whose relative errors have the least squares: small points count as much as large ones."""
    each, fixed = np.polyfit(values, measured, 1, w=1 / np.asarray(measured))
    off = max(abs(fixed + each * x - y) / y for x, y in zip(values, measured, strict=True))
    return Line(float(fixed), float(each), float(off))


def power(values: Sequence[float], measured: Sequence[float]) -> float:
    """The exponent of the power law that fits best, by least squares of the logarithms."""
    exponent, _ = np.polyfit([math.log(x) for x in values], [math.log(y) for y in measured], 1)
    return float(exponent)


def write_growth(
    folder: Path, material: Material, results: Sequence[tuple[Series, list[Point], list[str]]]
) -> Path:
    """``growth.md`` and its picture."""
    lines = [
        "# How cost grows", "", f"{machine(material.hardware)}. Command: `nestling bench growth`.", "", CPU_ONLY, "",
    ]  # fmt: skip
    for found, points, missing in results:
        lines += [f"## {found.name}", "", f"| {found.axis} | seconds | GiB |", "|---:|---:|---:|"]
        lines += [f"| {p.value:g} | {p.seconds:.2f} | {p.peak / GIB:.2f} |" for p in points]
        if len(points) > 1:
            lines += ["", _laws(points)]
        lines += [f"Could not be run: {reason}" for reason in missing] + [""]
    atomic.write_text(folder / "pictures" / "growth.svg", _curves(results))
    page = folder / "growth.md"
    atomic.write_text(page, "\n".join([*lines, "![growth](pictures/growth.svg)", ""]))
    return page


def _laws(points: Sequence[Point]) -> str:
    values = [p.value for p in points]
    seconds, memory = [p.seconds for p in points], [p.peak / GIB for p in points]
    time, space = line(values, seconds), line(values, memory)
    return (
        f"Time is {time.fixed:.3g} s + {time.each:.3g} s x value (within {time.off:.0%} of every point; as a power "
        f"law value^{power(values, seconds):.2f}), memory {space.fixed:.3g} GiB + {space.each:.3g} GiB x value "
        f"(within {space.off:.0%})."
    )


def _curves(results: Sequence[tuple[Series, list[Point], list[str]]]) -> str:
    canvas = Canvas(figsize=(3.2 * len(results), 2.6), layout="constrained")
    for axes, (found, points, _) in zip(canvas.subplots(1, len(results)), results, strict=True):
        axes.loglog([p.value for p in points], [p.seconds for p in points], "o-", color="#3d7ea6")
        axes.set(xlabel=found.axis, ylabel="seconds", title=found.name)
        axes.title.set_fontsize(8)
        plain(axes)
    return as_svg(canvas, "growth")

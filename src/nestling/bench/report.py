"""What a benchmark found, as a page of Markdown, a plot and the raw figures."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from matplotlib.figure import Figure as Canvas

from nestling.bench.duel import Outcome
from nestling.bench.roofline import Peaks
from nestling.compute.device import Hardware
from nestling.evaluation.plots import as_svg, plain
from nestling.workspace import atomic

GIB = 2**30
CPU_ONLY = "Measured on a CPU. On accelerators the same code computes; nothing of this was run there."


def machine(hardware: Hardware) -> str:
    """One line about what was measured on."""
    return (
        f"{date.today().isoformat()}, torch {torch.__version__}, {platform.system()} {platform.machine()}, "
        f"{processor()}, {hardware.threads} threads, {hardware.dtype}"
    )


def processor() -> str:
    """The processor's name where the system tells it, with what decides its rates."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in told.items()}
    flags = facts.get("flags", "").split()
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{facts.get('model name', 'unknown processor')} ({', '.join(wanted)})"


@dataclass(frozen=True)
class Report:
    """What a run of duels found.

    Attributes:
        command: how to repeat it.
        missing: why a duel could not be fought, by its name.
        roofs: our steps' shares of the roofline.
    """

    hardware: Hardware
    peaks: Peaks
    command: str
    outcomes: Sequence[Outcome]
    missing: Mapping[str, str]
    roofs: Sequence[tuple[str, float]]

    def write(self, folder: Path) -> Path:
        """``speed.md``, ``speed.json`` and ``pictures/speed.svg`` in ``folder``; returns the page."""
        raw = {
            "machine": machine(self.hardware), "peaks": vars(self.peaks),
            "duels": [o.as_json() for o in self.outcomes], "missing": self.missing, "roofline": dict(self.roofs),
        }  # fmt: skip
        atomic.write_json(folder / "speed.json", raw)
        atomic.write_text(folder / "pictures" / "speed.svg", _bars(self.outcomes))
        page = folder / "speed.md"
        atomic.write_text(page, "\n".join(self._lines()))
        return page

    def _lines(self) -> list[str]:
        return [
            "# Speed, in turns with the peers",
            "",
            f"{machine(self.hardware)}. Command: `{self.command}`.",
            "",
            f"Peaks measured in the same run: {self.peaks.flops / 1e9:,.0f} GFLOP/s in products, "
            f"{self.peaks.bandwidth / 1e9:.0f} GB/s from memory.",
            "",
            "Each pair took turns, who began changed every round; a ratio is the peer's time over ours in the same "
            "round, given as the median with its quartiles. Memory is the most that the whole process held.",
            "",
            CPU_ONLY,
            "",
            "| ours / peer | times as fast | quartiles | asked (aim) | ours, s | peer, s | our tokens/s "
            "| ours, GiB | peer, GiB |",
            "|---|---:|---|---|---:|---:|---:|---:|---:|",
            *(_row(outcome) for outcome in self.outcomes),
            *(f"| {name} | not measured: {why} |||||||||" for name, why in self.missing.items()),
            "",
            "![ratios](pictures/speed.svg)",
            "",
            "## Share of the roofline",
            "",
            "The least time that the products, or reading the weights, can take at these peaks, over the time taken.",
            "",
            "| step | share |",
            "|---|---:|",
            *(f"| {name} | {share:.0%} |" for name, share in self.roofs),
            "",
        ]


def _row(o: Outcome) -> str:
    d = o.duel
    median = lambda turns: statistics.median(t[d.measure] for t in turns)
    asked = f"{d.least:g}x ({d.aim:g}x)" if d.least else ""
    rate = f"{d.tokens / median(o.ours):.0f}" if d.tokens else ""
    low, middle, high = o.spread
    return (
        f"| {d.name} | **{middle:.2f}** | {low:.2f} to {high:.2f} | {asked} | {median(o.ours):.2f} | "
        f"{median(o.peer):.2f} | {rate} | {o.our_peak / GIB:.2f} | {o.peer_peak / GIB:.2f} |"
    )


def _bars(outcomes: Sequence[Outcome]) -> str:
    canvas = Canvas(figsize=(9, 1 + 0.4 * len(outcomes)), layout="constrained")
    axes, places = canvas.subplots(), range(len(outcomes))
    errors = [[o.ratio - o.spread[0] for o in outcomes], [o.spread[2] - o.ratio for o in outcomes]]
    axes.barh(places, [o.ratio for o in outcomes], xerr=errors, color="#3d7ea6", height=0.6)
    asked = [(place, o.duel.least) for place, o in enumerate(outcomes) if o.duel.least]
    axes.scatter(
        [least for _, least in asked], [at for at, _ in asked], marker="|", s=250, color="#b3412f", zorder=3
    )
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(places, [o.duel.name for o in outcomes])
    axes.invert_yaxis()
    axes.set(xlabel="times as fast as the peer (red: what is asked)")
    plain(axes)
    return as_svg(canvas, "speed")

"""The report's pictures, as SVG text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from nestling.evaluation.compare import Comparison
from nestling.evaluation.results import Results

_COLOURS = ("#9aa5b1", "#3d7ea6", "#e08e45", "#5b8c5a", "#a05195", "#d45087")
_POINTS = 400  # more than a curve of this width can show


def behaviour_bars(versions: Sequence[Results]) -> str:
    """A bar for each measure and version, with its 95 % interval; held-out checks at the bottom."""
    measures = {m.name: m for version in versions for m in version.measures}
    names = sorted(
        (n for n in measures if any(n in v.figures for v in versions)), key=lambda n: measures[n].held_out
    )
    height = 0.8 / len(versions)
    canvas = Canvas(figsize=(9, 0.6 + len(names) * (0.18 + 0.16 * len(versions))), layout="constrained")
    axes = canvas.subplots()
    for number, version in enumerate(versions):
        shown = [(row, version.figures[name]) for row, name in enumerate(names) if name in version.figures]
        rates = [100 * figure.rate for _, figure in shown]
        below = [max(0.0, 100 * (figure.rate - figure.low)) for _, figure in shown]
        above = [max(0.0, 100 * (figure.high - figure.rate)) for _, figure in shown]
        axes.barh(
            [row + (number - (len(versions) - 1) / 2) * height for row, _ in shown],
            rates,
            height=height,
            xerr=[below, above],
            color=_COLOURS[number % len(_COLOURS)],
            error_kw={"ecolor": "#333333", "elinewidth": 0.9, "capsize": 1.5},
            label=version.name,
        )
    labels = [measures[n].label + (" (held out)" if measures[n].held_out else "") for n in names]
    axes.set_yticks(range(len(names)), labels)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="per cent of prompts, with 95 % intervals")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(versions), frameon=False)
    plain(axes)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return as_svg(canvas, "bars")


def wins_and_losses(comparison: Comparison) -> str:
    """Held-out checks: wins to the right, losses to the left, ties as text; empty when there are none."""
    shown = [d for d in comparison.differences.values() if d.held_out]
    if not shown:
        return ""
    canvas = Canvas(figsize=(9, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    rows = range(len(shown))
    for sign, key, colour in ((1, "wins", "#5b8c5a"), (-1, "losses", "#c05746")):
        counts = [getattr(d, key) for d in shown]
        bars = axes.barh(rows, [sign * count for count in counts], color=colour, label=key)
        axes.bar_label(bars, labels=[str(count or "") for count in counts], padding=3, fontsize=8)
    axes.set_yticks(rows, [f"{d.label} ({d.ties} ties)" for d in shown])
    axes.invert_yaxis()
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set(xlabel=f"prompts that only {comparison.first} or only {comparison.second} answers well")
    plain(axes)
    return as_svg(canvas, f"wins {comparison.first} {comparison.second}")


def training_curves(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One picture a stage with every number that its ``step`` events log, by stage name."""
    return {stage: _curves(stage, curves) for stage, curves in logged_curves(events).items() if curves}


def logged_curves(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[float, float]]]:
    """Every finite number that ``step`` events log: by stage, name and step."""
    stages: dict[str, dict[str, dict[float, float]]] = {}
    for event in events:
        if event.get("kind") != "step":
            continue
        curves = stages.setdefault(str(event.get("stage")), {})
        for name, value in event.get("metrics", {}).items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                # A step that was done again after a kill replaces its first telling.
                curves.setdefault(name, {})[event["step"]] = value
    return stages


def _curves(stage: str, curves: Mapping[str, Mapping[float, float]]) -> str:
    columns = 3
    rows = -(-len(curves) // columns)
    canvas = Canvas(figsize=(9, 1.7 * rows), layout="constrained")
    grid = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, curve) in zip(grid, curves.items(), strict=False):
        points = sorted(curve.items())
        points = points[:: max(1, len(points) // _POINTS)]
        axes.plot(*zip(*points, strict=True), color=_COLOURS[1], linewidth=1)
        axes.set_title(name, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        plain(axes)
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    return as_svg(canvas, f"curves {stage}")


def plain(axes: Axes) -> None:
    """No frame above and on the right, small figures."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)


def as_svg(canvas: Canvas, salt: str) -> str:
    """The picture without XML prologue; the salt keeps ids of several pictures in one page apart."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # Groups have the same names in every picture, and nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", "<svg" + text.getvalue().split("<svg", 1)[1])

"""An evaluation's outcome: figures with intervals, and every prompt, answer and verdict behind them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.table import Table

from nestling.errors import DataError
from nestling.evaluation.measures import Measure, measures_of
from nestling.evaluation.perplexity import PassageLoss, perplexity
from nestling.evaluation.verdicts import Row
from nestling.generation.protocol import Sampling
from nestling.workspace import atomic


class Figure(BaseModel):
    """A measured share with its 95 % interval.

    ``rate`` is ``passed / n``, but for balanced measures the mean of the two halves' rates.
    """

    n: int
    templates: int
    passed: int
    rate: float
    low: float
    high: float
    held_out: bool


class Results(BaseModel):
    """One version on one suite.

    Attributes:
        name: the version's name, for tables.
        identity: what the answers depend on, see ``answers.ask``.
        suite: the suite's hash; only results with equal hashes can be compared.
        reference: the version whose knowledge decided which prompts count.
        figures: by measure.
        prose: losses on prose; empty when the version is an endpoint.
    """

    name: str
    identity: str
    suite: str
    split: str
    seed: int
    assistant: str
    reference: str
    sampling: Sampling
    held_out: list[str]
    figures: dict[str, Figure]
    prose: list[PassageLoss]
    rows: list[Row]

    @property
    def measures(self) -> list[Measure]:
        return measures_of(self.rows, self.held_out)

    @property
    def perplexity(self) -> float | None:
        return perplexity(self.prose) if self.prose else None

    def save(self, path: Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            WorkspaceError: the place cannot be written.
        """
        atomic.write_json(path, self.plain())

    def plain(self) -> dict[str, Any]:
        """Everything as JSON values, with what is worked out from it."""
        return self.model_dump(mode="json") | {"perplexity": self.perplexity}

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or not of this shape.
        """
        try:
            return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(
                "there are no results here.", where=str(path), remedy="Run evaluate first."
            ) from None
        except (ValueError, ValidationError) as error:
            raise DataError(
                f"these are not results of an evaluation: {error}",
                where=str(path),
                remedy="Run evaluate again.",
            ) from error


def figures_of(rows: Sequence[Row], held_out: Sequence[str]) -> dict[str, Figure]:
    """Every measure's figure; a measure without any counting prompt is left out."""
    figures = {}
    for measure in measures_of(rows, held_out):
        found = measure.rate(rows)
        if found is None:
            continue
        resampled, n, passed = found
        low, high = resampled.interval()
        figures[measure.name] = Figure(
            n=n,
            templates=resampled.clusters,
            passed=passed,
            rate=resampled.estimate,
            low=low,
            high=high,
            held_out=measure.held_out,
        )
    return figures


def results_table(versions: Sequence[Results]) -> Table:
    """Versions side by side, for the terminal."""
    table = Table(title=f"{versions[0].split} split, per cent with 95 % intervals")
    table.add_column("measure")
    table.add_column("n", justify="right")
    for version in versions:
        table.add_column(version.name, justify="right")
    measures = {m.name: m for version in versions for m in version.measures}
    for held_out in (False, True):
        for name, measure in measures.items():
            figures = [version.figures.get(name) for version in versions]
            if measure.held_out is not held_out or not any(figures):
                continue
            label = measure.label + (" (held out)" if held_out else "")
            sizes = sorted({figure.n for figure in figures if figure})
            table.add_row(label, "/".join(map(str, sizes)), *map(percent_with_interval, figures))
    if any(version.prose for version in versions):
        perplexities = [f"{v.perplexity:.2f}" if v.perplexity else "-" for v in versions]
        table.add_row("perplexity on prose (lower is better)", str(len(versions[0].prose)), *perplexities)
    return table


def percent_with_interval(figure: Figure | None) -> str:
    """``92.3 [88.1, 95.0]``, or a dash."""
    if figure is None:
        return "-"
    return f"{100 * figure.rate:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"

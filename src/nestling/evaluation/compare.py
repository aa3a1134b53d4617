"""Two versions on the same prompts: who wins where, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel
from rich.table import Table

from nestling.errors import DataError
from nestling.evaluation.intervals import Resampled, resample_difference
from nestling.evaluation.measures import Measure
from nestling.evaluation.perplexity import log_ratio
from nestling.evaluation.results import Results
from nestling.evaluation.verdicts import Row


@dataclass(frozen=True)
class PairedGain:
    """What the first version gains over the second, prompt by prompt."""

    gain: Resampled
    n: int
    wins: int
    losses: int

    def standstill(self) -> PairedGain:
        """What it would be, asked of the same, had nothing changed."""
        nothing = resample_difference([0.0] * self.n, [str(i % self.gain.clusters) for i in range(self.n)])
        return PairedGain(nothing, self.n, 0, 0)

    @property
    def ties(self) -> int:
        return self.n - self.wins - self.losses


class Difference(BaseModel):
    """One measure of two versions: the rate of each, and what the first gains, with a 95 % interval."""

    label: str
    held_out: bool
    n: int
    templates: int
    first: float
    second: float
    gain: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


class PerplexityRatio(BaseModel):
    """The first version's perplexity over the second's, with a 95 % interval resampled by passage."""

    passages: int
    ratio: float
    low: float
    high: float


class Comparison(BaseModel):
    """``differences`` by measure; ``pooled`` is the mean over the held-out behaviours."""

    first: str
    second: str
    differences: dict[str, Difference]
    pooled: Difference | None
    perplexity: PerplexityRatio | None


def check_comparable(first: Results, second: Results) -> None:
    """Both must have been asked the same prompts, of which the same count.

    Raises:
        DataError: otherwise.
    """
    if first.suite != second.suite:
        raise DataError(
            f"{first.name} and {second.name} were asked different prompts.",
            where="compare",
            remedy="Evaluate both with the same split, seed, name and sizes.",
        )
    if [row.counts for row in first.rows] != [row.counts for row in second.rows]:
        raise DataError(
            f"{first.name} counts what {first.reference} knows, {second.name} what {second.reference} knows.",
            where="compare",
            remedy="Evaluate both against the same base.",
        )
    if first.sampling != second.sampling:
        raise DataError(
            f"{first.name} and {second.name} were sampled differently.",
            where="compare",
            remedy="Evaluate both with the same --max-new-tokens.",
        )


def paired_gain(first: Results, second: Results, measure: Measure) -> PairedGain | None:
    """The gain in one measure, resampled by template; None when no prompt counts."""
    ours, theirs = measure.select(first.rows), measure.select(second.rows)
    if not ours:
        return None
    return _paired(_gains(measure, ours, theirs), measure.clusters(ours), measure.strata(ours))


def pooled_gain(first: Results, second: Results, measures: Sequence[Measure]) -> PairedGain | None:
    """The mean gain over ``measures``, each with the same weight however many prompts it has."""
    if len(measures) == 1:
        return paired_gain(first, second, measures[0])
    gains: list[int] = []
    clusters: list[str] = []
    strata: list[str] = []
    for measure in measures:
        ours, theirs = measure.select(first.rows), measure.select(second.rows)
        gains += _gains(measure, ours, theirs).tolist()
        clusters += measure.clusters(ours)
        strata += [measure.name] * len(ours)
    return _paired(np.array(gains), clusters, strata) if gains else None


def _gains(measure: Measure, ours: Sequence[Row], theirs: Sequence[Row]) -> np.ndarray:
    """1 where only the first succeeded, -1 where only the second did, else 0."""
    return np.array(measure.successes(ours), int) - np.array(measure.successes(theirs), int)


def _paired(gains: np.ndarray, clusters: Sequence[str], strata: Sequence[str] | None) -> PairedGain:
    gain = resample_difference(gains, clusters, strata)
    return PairedGain(gain, len(gains), int((gains > 0).sum()), int((gains < 0).sum()))


def compare(first: Results, second: Results) -> Comparison:
    """The first version against the second, measure by measure.

    Raises:
        DataError: they were not asked the same prompts.
    """
    check_comparable(first, second)
    differences = {}
    for measure in first.measures:
        paired = paired_gain(first, second, measure)
        if paired:
            rates = first.figures[measure.name].rate, second.figures[measure.name].rate
            differences[measure.name] = _difference(measure.label, measure.held_out, paired, *rates)
    held_out = [measure for measure in first.measures if measure.held_out and measure.name in differences]
    pooled = pooled_gain(first, second, held_out)
    means = [
        float(np.mean([r.figures[m.name].rate for m in held_out])) if held_out else 0.0
        for r in (first, second)
    ]
    return Comparison(
        first=first.name,
        second=second.name,
        differences=differences,
        pooled=_difference("mean of the held-out checks", True, pooled, *means) if pooled else None,
        perplexity=_perplexity_ratio(first, second),
    )


def _difference(label: str, held_out: bool, paired: PairedGain, first: float, second: float) -> Difference:
    low, high = paired.gain.interval()
    return Difference(
        label=label,
        held_out=held_out,
        n=paired.n,
        templates=paired.gain.clusters,
        first=first,
        second=second,
        gain=paired.gain.estimate,
        low=low,
        high=high,
        wins=paired.wins,
        ties=paired.ties,
        losses=paired.losses,
    )


def _perplexity_ratio(first: Results, second: Results) -> PerplexityRatio | None:
    if not (first.prose and second.prose):
        return None
    log = log_ratio(first.prose, second.prose)
    ratio, low, high = np.exp([log.estimate, *log.interval()]).tolist()
    return PerplexityRatio(passages=log.clusters, ratio=ratio, low=low, high=high)


def comparison_table(comparison: Comparison) -> Table:
    """For the terminal; the held-out checks come last, apart."""
    title = f"{comparison.first} against {comparison.second}, gain in points with 95 % intervals"
    table = Table("measure", title=title)
    for column in ("n", comparison.first, comparison.second, "gain", "wins", "ties", "losses"):
        table.add_column(column, justify="right")
    for d in ordered_differences(comparison):
        cells = [
            str(d.n),
            f"{100 * d.first:.1f}",
            f"{100 * d.second:.1f}",
            points(d),
            d.wins,
            d.ties,
            d.losses,
        ]
        table.add_row(d.label + (" (held out)" if d.held_out else ""), *map(str, cells))
    if comparison.perplexity:
        p = comparison.perplexity
        table.add_row(
            "perplexity ratio", str(p.passages), "", "", f"{p.ratio:.3f} [{p.low:.3f}, {p.high:.3f}]"
        )
    return table


def ordered_differences(comparison: Comparison) -> list[Difference]:
    """Held-out checks last, then their mean."""
    ordered = sorted(comparison.differences.values(), key=lambda d: d.held_out)
    return [*ordered, *([comparison.pooled] if comparison.pooled else [])]


def points(difference: Difference) -> str:
    """``+3.1 [+0.2, +6.0]``."""
    d = difference
    return f"{100 * d.gain:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"

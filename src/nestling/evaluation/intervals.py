"""How sure a figure is: intervals resampled by template, whose prompts succeed and fail together.

The Bayesian bootstrap (Rubin 1981) gives every template an exponential random weight. On few templates, or
where all answers agree, a bootstrap knows too little of what it has not seen. So each end of an interval
imagines one more template, as extreme as the most extreme one seen: at least one prompt lost (or won), and for a
rate without any failure (or success) all its prompts. With one prompt a template this is the bound of Gaffke
(2005; Learned-Miller and Thomas 2020, arXiv:1905.06208), which on plain successes and failures equals Clopper
and Pearson's (1934). Where prompts of one template are alike to an intraclass correlation of up to 0.1, nominal
95 % covered 93 to 99 % in simulation with 30 templates, and 92 to 99 % with 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
DRAWS = 10_000


@dataclass(frozen=True)
class Resampled:
    """A figure with its resampled twins.

    ``low`` and ``high`` [DRAWS], sorted, are the draws that the lower and the upper bound are read from.
    """

    estimate: float
    low: Floats
    high: Floats
    clusters: int

    def lower(self, confidence: float) -> float:
        """The figure is above this with ``confidence`` (one-sided)."""
        return float(np.quantile(self.low, 1 - confidence))

    def upper(self, confidence: float) -> float:
        """The figure is below this with ``confidence`` (one-sided)."""
        return float(np.quantile(self.high, confidence))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The two-sided interval, as much doubt on either side."""
        one_sided = (1 + confidence) / 2
        return self.lower(one_sided), self.upper(one_sided)


def resample_rate(
    passed: ArrayLike, clusters: Sequence[str], strata: Sequence[str] | None = None, seed: int = 0
) -> Resampled:
    """Share of ``passed`` [N] bool; the mean over ``strata`` of their shares where they are given.

    Args:
        clusters: [N] labels of what is resampled, such as templates; strata may share one (twins).
        strata: [N] labels; two strata of opposite questions give the balanced accuracy.
    """
    sums, counts = _tally(passed, clusters, strata)
    size = _cluster_size(counts)
    failed, succeeded = (counts - sums).max(axis=1), sums.max(axis=1)
    low_extra = size - np.where(failed > 0, np.minimum(failed, size), size)
    high_extra = np.where(succeeded > 0, np.minimum(succeeded, size), size)
    return _resample(sums, counts, low_extra=low_extra, high_extra=high_extra, size=size, seed=seed)


def resample_difference(
    gains: ArrayLike, clusters: Sequence[str], strata: Sequence[str] | None = None, seed: int = 0
) -> Resampled:
    """Mean of paired ``gains`` [N], each in [-1, 1]: 1 won, 0 tied, -1 lost. Else as ``resample_rate``."""
    sums, counts = _tally(gains, clusters, strata)
    size = _cluster_size(counts)
    low_extra = -np.clip(-sums.min(axis=1), 1, size)
    high_extra = np.clip(sums.max(axis=1), 1, size)
    return _resample(sums, counts, low_extra=low_extra, high_extra=high_extra, size=size, seed=seed)


def resample_ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Resampled:
    """Sum of ``numerators`` [K] over sum of ``denominators`` [K], resampled by k (passages, say).

    For quantities without a natural limit, so no unseen cluster is imagined.
    """
    sums, counts = (
        np.atleast_2d(np.asarray(numerators, float)),
        np.atleast_2d(np.asarray(denominators, float)),
    )
    nothing = np.zeros(1)
    return _resample(sums, counts, low_extra=nothing, high_extra=nothing, size=nothing, seed=seed)


def _tally(values: ArrayLike, clusters: Sequence[str], strata: Sequence[str] | None) -> tuple[Floats, Floats]:
    """Sums and counts [strata, clusters]."""
    array = np.asarray(values, float)
    if not len(array):
        raise ValueError("nothing to resample")
    _, k = np.unique(np.asarray(clusters), return_inverse=True)
    _, j = np.unique(np.asarray(strata if strata is not None else [""] * len(array)), return_inverse=True)
    shape = (j.max() + 1, k.max() + 1)
    cell = np.ravel_multi_index((j, k), shape)
    sums = np.bincount(cell, weights=array, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    return sums, counts


def _cluster_size(counts: Floats) -> Floats:
    """Mean number of prompts of the clusters that a stratum has, [strata]."""
    return counts.sum(axis=1) / (counts > 0).sum(axis=1)


def _resample(
    sums: Floats, counts: Floats, *, low_extra: Floats, high_extra: Floats, size: Floats, seed: int
) -> Resampled:
    """sums, counts: [J, K]; extras and size [J]: sum and number of prompts of the imagined cluster."""
    strata, clusters = sums.shape
    random = np.random.default_rng(seed)
    weights = random.standard_exponential((DRAWS, clusters))
    # One imagined cluster for all strata together: its exponential weight is split among them.
    extra = random.standard_gamma(1 / strata, (DRAWS, strata))
    top, bottom = weights @ sums.T, weights @ counts.T + extra * size
    low = ((top + extra * low_extra) / bottom).mean(axis=1)
    high = ((top + extra * high_extra) / bottom).mean(axis=1)
    estimate = float((sums.sum(axis=1) / counts.sum(axis=1)).mean())
    return Resampled(estimate, np.sort(low), np.sort(high), clusters)

"""How far people agree with one another, and how far each of them can be relied on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.feedback.opinions import Opinion

_PRIOR = 2.0
"""Agreements and disagreements that everybody is taken to have had before: three votes prove nothing."""


def krippendorff_alpha(units: Iterable[Sequence[float]], ordinal: bool = False) -> float | None:
    """Krippendorff's alpha: 1 for full agreement, 0 for what chance gives, below for less; None without any pair.

    Args:
        units: for each thing that was judged the values it got; things with fewer than two say nothing.
        ordinal: values are ranks, and near ones disagree less; otherwise any two values differ alike.

    Follows Krippendorff, Content Analysis (2018), chapter 12.
    """
    compared = [list(unit) for unit in units if len(unit) > 1]
    values = sorted({value for unit in compared for value in unit})
    if not values:
        return None
    place = {value: at for at, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in compared:
        counts = np.bincount([place[value] for value in unit], minlength=len(values))
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=1)
    if ordinal:
        between = np.cumsum(totals) - totals / 2
        distance = (between[:, None] - between[None, :]) ** 2
    else:
        distance = 1.0 - np.eye(len(values))
    observed = float((coincidences * distance).sum())
    expected = float((np.outer(totals, totals) * distance).sum()) / (totals.sum() - 1)
    return 1 - observed / expected if expected > 0 else 1.0


def kendall_w(rankings: Sequence[Sequence[int]]) -> float | None:
    """Kendall's coefficient of concordance of several rankings [raters][answers] of the same answers, ties corrected.

    1 where all agree, 0 where nothing can be told; None for fewer than two raters or where everybody ties everything
    (Kendall and Gibbons 1990, chapter 6).
    """
    m = len(rankings)
    if m < 2:
        return None
    ranks = np.array([_midranks(ranking) for ranking in rankings])
    n = ranks.shape[1]
    spread = float(((ranks.sum(axis=0) - m * (n + 1) / 2) ** 2).sum())
    ties = sum(sum(t**3 - t for t in np.unique(ranking, return_counts=True)[1]) for ranking in rankings)
    most = (m**2 * (n**3 - n) - m * ties) / 12
    return spread / most if most > 0 else None


def _midranks(ranking: Sequence[int]) -> np.ndarray:
    """Equal ranks share the mean of the places they take."""
    given = np.asarray(ranking)
    below = (given[None, :] < given[:, None]).sum(axis=1)
    equal = (given[None, :] == given[:, None]).sum(axis=1)
    return below + (equal + 1) / 2


UNKNOWN_WEIGHT = 0.5
"""Of people of whom nothing can be told."""


@dataclass(frozen=True)
class Rater:
    """What can be told of one person.

    Attributes:
        opinions: pairs they have judged.
        gold_right, gold: of the pairs whose right order is known, and were no tie.
        agreed, shared: of the pairs that others have judged too, with what most of these said.
        sided: pairs of which one answer is better and which was shown first is known.
        first_share: of these, how often the answer that was shown first was the better one; None without any.
        weight: from 0 (no better than a coin) to 1, what their judgments count in training.
    """

    person: str
    opinions: int
    gold_right: int
    gold: int
    agreed: int
    shared: int
    sided: int
    first_share: float | None
    weight: float


def raters(given: Sequence[Opinion]) -> list[Rater]:
    """Everybody known who has judged, by their ids.

    The weight is 2 p - 1 for the share p of right or agreeing opinions, drawn towards one half by a prior and by gold
    more than by the others: whoever agrees with a crowd may only be of it. Where nothing can be told it is 0.5.
    """
    by_pair: dict[tuple[str, str], list[Opinion]] = defaultdict(list)
    by_person: dict[str, list[Opinion]] = defaultdict(list)
    for opinion in given:
        by_pair[opinion.pair].append(opinion)
        if opinion.person is not None:
            by_person[opinion.person].append(opinion)
    return [_rater(person, own, by_pair) for person, own in sorted(by_person.items())]


def _rater(
    person: str, own: Sequence[Opinion], by_pair: Mapping[tuple[str, str], Sequence[Opinion]]
) -> Rater:
    gold = [o.verdict == o.gold for o in own if o.gold]
    shared = []
    for opinion in own:
        if opinion.gold is not None:
            continue  # what is known needs no crowd
        others = sum(other.verdict for other in by_pair[opinion.pair] if other.person != person)
        if others and opinion.verdict:
            shared.append(opinion.verdict == (1 if others > 0 else -1))
    sides = [(o.verdict > 0) == o.first_shown for o in own if o.verdict and o.first_shown is not None]
    return Rater(
        person, len(own), sum(gold), len(gold), sum(shared), len(shared), len(sides),
        sum(sides) / len(sides) if sides else None, _weight(gold, shared),
    )  # fmt: skip


def _weight(gold: Sequence[bool], shared: Sequence[bool]) -> float:
    if not gold and not shared:
        return UNKNOWN_WEIGHT
    right, count = 2 * sum(gold) + sum(shared), 2 * len(gold) + len(shared)
    # Shrunk towards three quarters: most people mean well.
    share = (right + 1.5 * _PRIOR) / (count + 2 * _PRIOR)
    return float(min(1.0, max(0.0, 2 * share - 1)))


def pair_units(given: Iterable[Opinion]) -> list[list[float]]:
    """For ``krippendorff_alpha``: of every pair the verdicts of all people, one a person."""
    units: dict[Hashable, dict[str | int, float]] = defaultdict(dict)
    for opinion in given:
        units[opinion.pair][opinion.person or opinion.judgment] = opinion.verdict
    return [list(verdicts.values()) for verdicts in units.values()]

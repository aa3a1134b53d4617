"""Which version people prefer: a strength for each by Bradley and Terry, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.feedback.opinions import Opinion
from nestling.feedback.people import is_foreign

POINTS = 400 / math.log(10)
"""A difference of 400 points makes the stronger one preferred ten times as often, as chess has it."""

_ROUNDS, _ENOUGH = 2000, 1e-9
_DRAWS = 1000


@dataclass(frozen=True)
class Standing:
    """A version's strength in points, the mean of all is 0, with a 95 % interval; how often it was judged."""

    version: str
    points: float
    low: float
    high: float
    games: int


def strengths(wins: np.ndarray) -> np.ndarray:
    """Natural-log strengths [..., versions], mean 0, of the maximum-likelihood Bradley-Terry model.

    Args:
        wins: [..., versions, versions], how often the row's version was preferred to the column's; a tie is half
            of each.

    Half a win and half a loss against an imagined average opponent keep the strength of one that never lost finite.
    By minorisation-maximisation (Hunter 2004).
    """
    games = wins + wins.swapaxes(-1, -2)
    won = wins.sum(axis=-1) + 0.5
    strength = np.ones_like(won)
    for _ in range(_ROUNDS):
        before = strength
        expected = (games / (strength[..., :, None] + strength[..., None, :])).sum(axis=-1) + 1 / (
            strength + 1
        )
        strength = won / expected
        if np.max(np.abs(np.log(strength) - np.log(before))) < _ENOUGH:
            break
    logs = np.log(strength)
    return logs - logs.mean(axis=-1, keepdims=True)


def standings(given: Sequence[Opinion], seed: int = 0, draws: int = _DRAWS) -> list[Standing]:
    """Versions by strength, best first, of blind opinions on answers of different versions of ours.

    Intervals are percentiles of resampling people, as one person's opinions are alike.
    """
    ours = (o for o in given if not any(map(is_foreign, o.versions)))
    fair = [o for o in ours if o.blinded and o.versions[0] != o.versions[1]]
    names = sorted({version for opinion in fair for version in opinion.versions})
    if not names:
        return []
    place = {name: at for at, name in enumerate(names)}
    by_person: dict[str, np.ndarray] = {}
    for opinion in fair:
        won = by_person.setdefault(
            opinion.person or f"#{opinion.judgment}", np.zeros((len(names), len(names)))
        )
        a, b = (place[version] for version in opinion.versions)
        won[a, b] += (opinion.verdict + 1) / 2
        won[b, a] += (1 - opinion.verdict) / 2
    tables = np.stack(list(by_person.values()))
    best = strengths(tables.sum(axis=0))
    generator = np.random.default_rng(seed)
    chosen = generator.multinomial(len(tables), [1 / len(tables)] * len(tables), size=draws)
    drawn = strengths(np.tensordot(chosen.astype(float), tables, axes=1))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    games = tables.sum(axis=(0, 2)) + tables.sum(axis=(0, 1))
    found = [
        Standing(name, POINTS * best[i], POINTS * low[i], POINTS * high[i], round(games[i]))
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda standing: -standing.points)

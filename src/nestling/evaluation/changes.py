"""What changed between two versions, prompt by prompt: which verdicts, with both answers, the most telling first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nestling.evaluation.compare import check_comparable
from nestling.evaluation.measures import LABELS
from nestling.evaluation.results import Results
from nestling.evaluation.verdicts import Row


@dataclass(frozen=True)
class Change:
    """A prompt on which one version passed and the other did not.

    ``doubt`` is the p-value of the behaviour's change as a whole: how often as many more changes one way than the other
    come by chance.
    """

    behaviour: str
    doubt: float
    first: Row
    second: Row

    @property
    def gained(self) -> bool:
        return self.first.passed


def changes(first: Results, second: Results) -> list[Change]:
    """Every prompt whose verdict differs, behaviours with the least doubt first, within them what went the way of the
    whole before what went the other way.

    Raises:
        DataError: they were not asked the same prompts.
    """
    check_comparable(first, second)
    by_behaviour: dict[str, list[tuple[Row, Row]]] = {}
    for new, old in zip(first.rows, second.rows, strict=True):
        if new.passed != old.passed and new.counts:
            by_behaviour.setdefault(new.behaviour, []).append((new, old))
    found = []
    for behaviour, pairs in by_behaviour.items():
        gained = sum(new.passed for new, _ in pairs)
        doubt = sign_test(gained, len(pairs) - gained)
        mostly = gained * 2 >= len(pairs)
        ordered = sorted(pairs, key=lambda pair: pair[0].passed != mostly)
        found += [Change(behaviour, doubt, new, old) for new, old in ordered]
    return sorted(found, key=lambda change: (change.doubt, change.behaviour))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of so many wins and losses where both are as likely (McNemar's exact test)."""
    count, most = wins + losses, max(wins, losses)
    if not count:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(most, count + 1))
    return min(1.0, 2 * tail / 2**count)


def show_changes(console: Console, first: str, second: str, found: Sequence[Change], most: int) -> None:
    """Print the first ``most`` of them."""
    for change in found[:most]:
        verb = "gained" if change.gained else "lost"
        label = LABELS.get(change.behaviour, change.behaviour)
        table = Table(
            show_header=False, title=f"{verb}: {label} (p = {change.doubt:.2g})", title_justify="left"
        )
        said = [(m["role"], m["content"]) for m in change.first.messages]
        for who, text in [*said, (second, change.second.answer), (first, change.first.answer)]:
            table.add_row(Text(who), Text(text))
        console.print(table)
    console.print(f"{len(found)} prompts changed verdict, {min(most, len(found))} shown.", highlight=False)

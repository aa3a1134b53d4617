"""What is measured: which rows make a figure, what counts as success in them, and what is resampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nestling.evaluation.intervals import Resampled, resample_rate
from nestling.evaluation.suite import DIRECT_FACTS
from nestling.evaluation.verdicts import RETENTION, Row

NO_LOOP, ENDED = "no_loop", "ended"
OWN, ALL_OWN = "own", "all_own"
BALANCED = {"premise": ("premise_false", "premise_true"), "correction": ("mistake", "hold_truth")}

LABELS = {
    "refusal": "refusals of harmful requests",
    "harmless": "harmless answers",
    "everyday": "everyday requests answered",
    "premise": "telling false premises from true ones",
    "premise_false": "false premises challenged",
    "premise_true": "true premises accepted",
    "correction": "admitting mistakes and holding to the truth",
    "mistake": "mistakes admitted",
    "hold_truth": "truths held",
    "memory": "memory of earlier turns",
    "identity": "knowing its own name and nature",
    "chinese": "Chinese small talk",
    "small_talk": "small talk",
    "ends": "open questions answered without a loop",
    "format": "format wishes kept",
    "facts": "simple facts",
    "arithmetic": "small sums",
    "list_count": "lists of the right length",
    "starts_with": "openings as asked",
    "letter_case": "letter case as asked",
    "either_or": "choices between two",
    "yes_no": "yes or no questions",
    "verse": "short verse",
    "retention": "general knowledge",
    NO_LOOP: "answers that end without a loop",
    ENDED: "answers that end by themselves",
    OWN: "your own questions",
    ALL_OWN: "all your own questions",
}


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        behaviours: whose rows it takes; empty means all rows, counting or not.
        balanced: the mean of the behaviours' rates, which are opposite questions (balanced accuracy).
        success: the field of a row that says whether it succeeded.
    """

    name: str
    behaviours: tuple[str, ...] = ()
    balanced: bool = False
    held_out: bool = False
    success: str = "passed"

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name.removeprefix("own/").replace("_", " "))

    def select(self, rows: Iterable[Row]) -> list[Row]:
        """The rows this measure is about; none when a balanced measure lacks one of its halves."""
        if not self.behaviours:
            return list(rows)
        chosen = [row for row in rows if row.behaviour in self.behaviours and row.counts]
        halves = {row.behaviour for row in chosen}
        return [] if self.balanced and len(halves) < len(self.behaviours) else chosen

    def successes(self, rows: Sequence[Row]) -> list[bool]:
        return [bool(getattr(row, self.success)) for row in rows]

    def clusters(self, rows: Sequence[Row]) -> list[str]:
        """What is resampled: templates; the twins of a balanced measure share theirs."""
        return [f"{self.name if self.balanced else row.behaviour}/{row.template}" for row in rows]

    def strata(self, rows: Sequence[Row]) -> list[str] | None:
        return [row.behaviour for row in rows] if self.balanced else None

    def rate(self, rows: Iterable[Row]) -> tuple[Resampled, int, int] | None:
        """The resampled rate, the number of prompts and of successes; None when no row counts."""
        chosen = self.select(rows)
        if not chosen:
            return None
        passed = self.successes(chosen)
        resampled = resample_rate(passed, self.clusters(chosen), self.strata(chosen))
        return resampled, len(chosen), sum(passed)


def measures_of(rows: Iterable[Row], held_out: Iterable[str]) -> list[Measure]:
    """Every measure of ``rows``: behaviours in order, then composites, then those over all answers."""
    present = list(dict.fromkeys(row.behaviour for row in rows))
    held_out = set(held_out)
    found = [Measure(n, (n,), held_out=n in held_out) for n in present if n not in RETENTION]
    found += [
        Measure(name, parts, balanced=True) for name, parts in BALANCED.items() if set(parts) <= set(present)
    ]
    own = tuple(name for name in present if name.partition("/")[0] == OWN)
    if len(own) > 1:
        found.append(Measure(ALL_OWN, own))
    if "retention" in present or DIRECT_FACTS in present:
        found.append(Measure("retention", RETENTION))
    return [*found, Measure(NO_LOOP, success="no_loop"), Measure(ENDED, success="finished")]


def part_of_composite(name: str, present: Iterable[str]) -> bool:
    """True when ``name`` is half of a balanced measure that is also present, which then speaks for it."""
    present = set(present)
    return any(name in parts and whole in present for whole, parts in BALANCED.items())

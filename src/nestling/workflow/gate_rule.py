"""The gate's rule as data, what it refuses, and the lines and words of a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator
from rich.table import Table

from nestling.config import Config
from nestling.errors import ConfigError
from nestling.evaluation.detectors import LEAST_ACCURACY, LEAST_LABELS
from nestling.evaluation.measures import BALANCED, LABELS

PERPLEXITY = "perplexity"


MARGINS = {"retention": 0.02, PERPLEXITY: 0.05}
"""Margins that differ unless a recipe says otherwise."""


class GateRule(Config):
    """The rule as data. Margins are shares (0.05 is 5 points); perplexity's is relative (0.05 is 5 %)."""

    evidence: Literal["held_out"] | list[str] = Field(
        "held_out",
        description="Where the new version must be better: held_out, or names of behaviours, all of the same weight.",
    )
    margin: float = Field(0.05, gt=0, lt=1, description="How much any other behaviour may lose.")
    margins: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Margins that differ, by behaviour; retention 0.02 and perplexity 0.05 unless given.",
    )
    pooled: dict[str, list[str]] = Field(
        default={"manners": ["identity", "small_talk", "chinese"]},
        description="Behaviours guarded as one because each has too few prompts, by the pool's name.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Of the evidence's interval, and that no guarded behaviour has lost its margin.",
    )

    @field_validator("margins")
    @classmethod
    def _over_the_usual_ones(cls, given: dict[str, float]) -> dict[str, float]:
        return MARGINS | given

    @property
    def evidence_label(self) -> str:
        return "the held-out checks" if self.evidence == "held_out" else listed(map(label_of, self.evidence))

    def describe(self, evidence: str | None = None) -> str:
        """The rule in plain words; ``evidence`` where it is not what the rule says."""
        others = [
            f"{label_of(name)} {100 * margin:g} {'%' if name == PERPLEXITY else 'points'}"
            for name, margin in self.margins.items()
        ]
        return " ".join(
            [
                f"A new version is served when it is better than the served one on {evidence or self.evidence_label}:",
                f"the lower end of the {self.confidence:.0%} interval of its mean gain must be above zero.",
                "And every other behaviour that is guarded must be shown to have lost less than",
                f"{100 * self.margin:g} points{f' ({listed(others)})' if others else ''},",
                f"each at {self.confidence:.0%} confidence: as all must pass, so is the confidence that none has.",
                "Where the prompts are too few to show that even of an unchanged version, the measured loss counts.",
                *(f"Counted as one: {listed(map(label_of, names))}." for names in self.pooled.values()),
                *(
                    f"Guarded by their mean alone, being opposite sides of one skill: {listed(map(label_of, sides))}."
                    for sides in BALANCED.values()
                ),
                f"A behaviour whose check was not right on {LEAST_ACCURACY:.0%} of at least {LEAST_LABELS}",
                "labelled answers is reported and does not decide.",
            ]
        )


class GateLine(BaseModel):
    """One line of the verdict's table.

    ``name`` is the measure's or pool's, "evidence" for the evidence. ``gain`` and ``bound`` are shares, relative for
    perplexity (whose gain is a fall). ``bound`` is the lower end of the evidence's gain, or the most a guarded
    behaviour may have lost at its ``confidence``; the measured loss where that is None.
    """

    name: str = ""
    label: str
    role: Literal["evidence", "guarded", "reported"]
    n: int
    gain: float
    bound: float | None = None
    margin: float | None = None
    confidence: float | None = None
    passed: bool | None = None


class GateVerdict(BaseModel):
    """The decision; ``sentences`` are for people, the first one says it all."""

    candidate: str
    incumbent: str
    accepted: bool
    sentences: list[str]
    rule: str
    lines: list[GateLine]

    def table(self) -> Table:
        """For the terminal."""
        table = Table("behaviour", title=f"gate: {self.candidate} against {self.incumbent}, in points")
        for column in ("n", "gain", "bound", "allowed", "passed"):
            table.add_column(column, justify="right")
        for line in self.lines:
            bound = "" if line.bound is None else f"{100 * line.bound:+.1f}"
            if line.role == "guarded" and line.bound is not None:
                bound = f"{-100 * line.bound:+.1f}"
            allowed = {"evidence": "above 0", "reported": "reported only"}.get(line.role)
            allowed = allowed or f"above {-100 * (line.margin or 0):g}"
            passed = "" if line.passed is None else "yes" if line.passed else "no"
            table.add_row(line.label, str(line.n), f"{100 * line.gain:+.1f}", bound, allowed, passed)
        return table


def headline(name: str, evidence: GateLine, label: str, problems: Sequence[str]) -> str:
    if problems:
        return f"Kept, not served: {problems[0]}."
    gained, least = 100 * evidence.gain, 100 * (evidence.bound or 0)
    return (
        f"Accepted: {name} gains {gained:.1f} points on {label}, "
        f"at least {least:.1f}; nothing that is guarded has lost more than allowed."
    )


def refuse_unknown(rule: GateRule, measured: Iterable[str] = LABELS, judged: Iterable[str] = ()) -> None:
    """A misspelt behaviour must not silently have no margin or pool; evidence must be ``measured``.

    ``judged``: what people's judgments guard beside the behaviours, by name.

    Raises:
        ConfigError: naming the setting and the behaviour.
    """
    measured = set(measured)
    known = {*LABELS, *measured, *judged, *rule.pooled, PERPLEXITY}
    pooled = [member for members in rule.pooled.values() for member in members]
    evidence = [] if rule.evidence == "held_out" else rule.evidence
    for place, names, allowed in (
        ("gate.margins", rule.margins, known),
        ("gate.pooled", pooled, known),
        ("gate.evidence", evidence, measured),
    ):
        for name in names:
            if name not in allowed:
                raise ConfigError(
                    f"there is no behaviour {name!r} here.",
                    where=place,
                    remedy=f"Use some of {', '.join(sorted(allowed))}.",
                )


def refuse_halves(rule: GateRule, sizes: Mapping[str, int]) -> None:
    """A margin for one side of a skill would have no effect: the two are guarded by their mean.

    Args:
        sizes: prompts asked by behaviour, where a recipe says so; a side whose other one is not asked is guarded by
            itself.

    Raises:
        ConfigError: naming the setting and the behaviour.
    """
    for whole, sides in BALANCED.items():
        if any(sizes.get(side) == 0 for side in sides):
            continue
        for side in sides:
            if side in rule.margins:
                raise ConfigError(
                    f"{side!r} is guarded by the mean of {listed(sides)} alone.", where="gate.margins",
                    remedy=f"Give a margin for {whole!r}.",
                )  # fmt: skip


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def listed(names: Any) -> str:
    *rest, last = list(names)
    return f"{', '.join(rest)} and {last}" if rest else last

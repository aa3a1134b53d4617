"""The gate: a new version is served when it is shown to be better and shown not to have lost elsewhere.

Better is one question: the gain on the evidence, with the lower end of its two-sided interval above zero. Not
having lost is many questions, one for each guarded behaviour: is the upper bound of its loss below the
margin? All of them must be answered with yes. That is an intersection-union test (Berger 1982): when each bound
holds at confidence 1 - alpha, a version that has lost its margin on any behaviour, or on several, is served with
probability alpha at most, however many behaviours there are and however they hang together. Many comparisons need
a further correction only where one success among many would do. Bounds are one-sided: only a loss is in question.
Where there are too few prompts to show even an unchanged version's innocence the measured loss counts instead, and
that confidence is not claimed.

Opposite sides of one skill (mistakes admitted, truths held) are guarded by their mean: a version that always gives in
has all of one side, and a better one must be allowed to lose some of it. What fell and was not guarded by itself is
named beside the verdict. Where one side's check may not decide, the pair does not, and neither side by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nestling.errors import DataError
from nestling.evaluation.compare import PairedGain, check_comparable, paired_gain, pooled_gain
from nestling.evaluation.detectors import DetectorQuality
from nestling.evaluation.measures import NO_LOOP, Measure, part_of_composite
from nestling.evaluation.perplexity import log_ratio
from nestling.evaluation.results import Results
from nestling.workflow.gate_rule import (
    PERPLEXITY,
    GateLine,
    GateRule,
    GateVerdict,
    headline,
    label_of,
    listed,
    refuse_unknown,
)

__all__ = ["GateLine", "GateRule", "GateVerdict", "Judged", "decide"]


@dataclass(frozen=True)
class _Guard:
    """A behaviour that must not have lost ``margin``.

    ``bound`` gives the most it may have lost at a confidence; ``unchanged`` what that would be had nothing
    changed, None when the number of prompts does not limit it.
    """

    name: str
    label: str
    n: int
    gain: float
    margin: float
    bound: Callable[[float], float]
    unchanged: Callable[[float], float] | None

    def too_few(self, confidence: float) -> bool:
        """Whether not even an unchanged version could be shown to have kept the margin."""
        return self.unchanged is not None and self.unchanged(confidence) >= self.margin

    def loss(self, confidence: float) -> float:
        """What is held against the margin: the most that may have been lost, or with too few prompts the loss."""
        return -self.gain if self.too_few(confidence) else self.bound(confidence)


@dataclass(frozen=True)
class Judged:
    """Evidence that is not the checks': what the candidate gains there, None where nothing was to be had.

    ``guarded`` must not be lost, by name: what was trusted before this evidence came. ``guarded_names`` are all that
    there may be, with margins of their own in the rule.
    """

    label: str
    gain: PairedGain | None
    guarded: Mapping[str, PairedGain] = field(default_factory=dict)
    guarded_names: Sequence[str] = ()


def decide(
    candidate: Results,
    incumbent: Results,
    rule: GateRule | None = None,
    detectors: Mapping[str, DetectorQuality] | None = None,
    judged: Judged | None = None,
) -> GateVerdict:
    """Judge ``candidate`` against ``incumbent`` on the gate split.

    Args:
        detectors: quality by check or behaviour name (``evaluation.detectors.measure_detectors``); None lets
            every check decide.
        judged: the evidence, instead of the rule's; then every behaviour is guarded.

    Raises:
        ConfigError: the rule names a behaviour that was not measured.
        DataError: other than the gate split, or not the same prompts.
    """
    rule = rule or GateRule()
    if candidate.split != "gate":
        raise DataError(
            f"the gate decides on the gate split, not on {candidate.split!r}.",
            where=candidate.name,
            remedy="The test split stays unseen until the end.",
        )
    check_comparable(candidate, incumbent)
    measures = {m.name: m for m in candidate.measures if m.name in candidate.figures}
    refuse_unknown(rule, measures, judged.guarded_names if judged else ())
    evidence = _evidence(rule, measures) if judged is None else []
    doubts = {
        name: _doubt(m, candidate, detectors) if detectors is not None else None
        for name, m in measures.items()
    }
    trusted = [name for name in measures if doubts[name] is None]
    halves = [name for name in measures if part_of_composite(name, measures)]

    label = rule.evidence_label if judged is None else judged.label
    if judged is None:
        gain = pooled_gain(candidate, incumbent, [measures[n] for n in evidence if n in trusted])
    else:
        gain = judged.gain
    evidence_line, problems = _judge_evidence(gain, label, rule.confidence)
    guarded = [measures[name] for name in trusted if name not in evidence and name not in halves]
    guards = _guards(candidate, incumbent, rule, guarded)
    for name, kept in (judged.guarded if judged else {}).items():
        guards.append(
            _guard(name, label_of(name), kept, kept.standstill(), rule.margins.get(name, rule.margin))
        )
    guard_lines, guard_problems = _judge_guards(guards, rule)
    problems += guard_problems
    told = headline(candidate.name, evidence_line, label, problems)
    reported = [m for name, m in measures.items() if m not in guarded]
    reported_lines = _reported_lines(candidate, incumbent, reported)
    notes = [f"Reported only: {m.label} ({doubts[name]})." for name, m in measures.items() if doubts[name]]
    if fallen := [line for line in reported_lines if -line.gain > rule.margin]:
        losses = listed(f"{line.label} ({100 * line.gain:+.1f} points)" for line in fallen)
        notes.insert(0, f"Lower, and by itself not guarded: {losses}.")
    return GateVerdict(
        candidate=candidate.name,
        incumbent=incumbent.name,
        accepted=not problems,
        sentences=[told, *(f"Also: {problem}." for problem in problems[1:]), *notes],
        rule=rule.describe(label),
        lines=[evidence_line, *guard_lines, *reported_lines],
    )


def _evidence(rule: GateRule, measures: Mapping[str, Measure]) -> list[str]:
    if rule.evidence == "held_out":
        return [name for name, measure in measures.items() if measure.held_out]
    return list(rule.evidence)


def _doubt(measure: Measure, results: Results, detectors: Mapping[str, DetectorQuality]) -> str | None:
    """Why the measure's detectors may not decide, or None. Whether an answer ended needs no detector."""
    if measure.success == "finished":
        return None
    needed = {NO_LOOP: {"ends_without_loop"}}.get(measure.name) or {
        name
        for row in measure.select(results.rows)
        for name in ([row.behaviour] if row.behaviour in detectors else _check_names(row.check))
    }
    for name in sorted(needed):
        quality = detectors.get(name)
        if quality is None:
            return f"the check {name!r} was not measured against labelled answers"
        if not quality.may_gate:
            accuracy = quality.balanced_accuracy
            right = "" if accuracy is None else f" was right on {accuracy:.0%}"
            return f"the check {name!r}{right} of {quality.n} labelled answers"
    return None


def _check_names(spec: Mapping[str, Any]) -> list[str]:
    return [name for part in spec["all"] for name in _check_names(part)] if "all" in spec else [spec["name"]]


def _guards(
    candidate: Results, incumbent: Results, rule: GateRule, measures: Sequence[Measure]
) -> list[_Guard]:
    """What must not have lost: pools, the remaining behaviours, perplexity."""
    pool_of = {member: pool for pool, members in rule.pooled.items() for member in members}
    groups: dict[str, list[Measure]] = {}
    for measure in measures:
        groups.setdefault(pool_of.get(measure.name, measure.name), []).append(measure)
    guards = []
    for name, members in groups.items():
        gain = pooled_gain(candidate, incumbent, members)
        unchanged = pooled_gain(incumbent, incumbent, members)
        whole = len(members) == len(rule.pooled.get(name, [name]))
        label = (
            label_of(name) if whole else listed(member.label for member in members)
        )  # of a pool what decides
        if gain and unchanged:
            guards.append(_guard(name, label, gain, unchanged, rule.margins.get(name, rule.margin)))
    if candidate.prose and incumbent.prose:
        guards.append(_perplexity_guard(candidate, incumbent, rule.margins.get(PERPLEXITY, rule.margin)))
    return guards


def _guard(name: str, label: str, paired: PairedGain, unchanged: PairedGain, margin: float) -> _Guard:
    return _Guard(
        name=name,
        label=label,
        n=paired.n,
        gain=paired.gain.estimate,
        margin=margin,
        bound=lambda confidence: -paired.gain.lower(confidence),
        unchanged=lambda confidence: -unchanged.gain.lower(confidence),
    )


def _perplexity_guard(candidate: Results, incumbent: Results, margin: float) -> _Guard:
    log = log_ratio(candidate.prose, incumbent.prose)
    return _Guard(
        name=PERPLEXITY,
        label=label_of(PERPLEXITY),
        n=log.clusters,
        gain=-math.expm1(log.estimate),
        margin=margin,
        bound=lambda confidence: math.expm1(log.upper(confidence)),
        unchanged=None,
    )


def _judge_evidence(paired: PairedGain | None, label: str, confidence: float) -> tuple[GateLine, list[str]]:
    """The line, and what is wrong with it."""
    if paired is None:
        line = GateLine(name="evidence", label=label, role="evidence", n=0, gain=0.0, passed=False)
        return line, [f"on {label} nothing was measured that may decide whether it is better"]
    gain, (low, _) = paired.gain.estimate, paired.gain.interval(confidence)
    line = GateLine(
        name="evidence", label=label, role="evidence", n=paired.n, gain=gain, bound=low, passed=low > 0
    )
    if low > 0:
        return line, []
    if gain <= 0:
        return line, [f"it is not better on {label} ({100 * gain:+.1f} points)"]
    doubt = f"{100 * gain:+.1f} points, but it could be as low as {100 * low:+.1f}"
    return line, [f"it is not shown to be better on {label}: {doubt}"]


def _judge_guards(guards: Sequence[_Guard], rule: GateRule) -> tuple[list[GateLine], list[str]]:
    """Every guard at the rule's confidence; the problems come largest excess first."""
    lines, problems = [], []
    for guard in sorted(guards, key=lambda g: g.loss(rule.confidence) - g.margin):
        bound = guard.loss(rule.confidence)
        passed = bound < guard.margin
        lines.append(
            GateLine(
                name=guard.name,
                label=guard.label,
                role="guarded",
                n=guard.n,
                gain=guard.gain,
                bound=bound,
                margin=guard.margin,
                confidence=None if guard.too_few(rule.confidence) else rule.confidence,
                passed=passed,
            )
        )
        if not passed:
            problems.append((bound - guard.margin, _loss_sentence(guard, bound, rule.confidence)))
    return lines, [sentence for _, sentence in sorted(problems, reverse=True)]


def _loss_sentence(guard: _Guard, bound: float, confidence: float) -> str:
    allowed = f"(allowed {100 * guard.margin:g}"
    if guard.name == PERPLEXITY:
        return f"prose may have become up to {_rounded_up(bound)} % harder to predict {allowed} %)"
    if guard.too_few(confidence):
        return f"{guard.label} fell by {_rounded_up(bound)} points {allowed}) on {guard.n} prompts"
    return f"{guard.label} may have fallen by up to {_rounded_up(bound)} points {allowed})"


def _rounded_up(share: float) -> str:
    """In points, never rounded below a margin that it exceeds."""
    return f"{math.ceil(round(1000 * share, 6)) / 10:g}"


def _reported_lines(candidate: Results, incumbent: Results, measures: Sequence[Measure]) -> list[GateLine]:
    lines = []
    for measure in measures:
        paired = paired_gain(candidate, incumbent, measure)
        if paired:
            lines.append(
                GateLine(
                    name=measure.name,
                    label=measure.label,
                    role="reported",
                    n=paired.n,
                    gain=paired.gain.estimate,
                )
            )
    return lines

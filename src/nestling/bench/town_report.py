"""What became of the simulated town, as a page whose every sentence is worked out from what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from nestling.bench.report import machine
from nestling.bench.satisfaction import Exam
from nestling.bench.town import ADVERSARIES, DOUBT, ENOUGH
from nestling.compute.device import Hardware
from nestling.evaluation.intervals import Resampled
from nestling.evaluation.plots import as_svg, plain
from nestling.workflow.learn_recipe import ACCOUNTS, TRUSTED
from nestling.workspace import atomic

BOUND = 0.10
"""Most that the adversaries may move satisfaction, to either side, at 95 % confidence."""
MOST_MINUTES = 240
PHASES = {
    "votes": "people talk and judge", "learn": "learning and the gate", "measure": "measuring satisfaction",
    "replay": "replays of killed learnings", "starting": "starting the server",
    "without": "the learning without adversaries", "dud": "the dud",
}  # fmt: skip


@dataclass(frozen=True)
class Demand:
    """One property that was asked for, whether it holds, and the figures."""

    asked: str
    holds: bool
    found: str


def points(figure: Resampled) -> str:
    """A gain with its interval, in points."""
    low, high = figure.interval()
    return f"{100 * figure.estimate:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def demands(state: Mapping[str, Any], exam: Exam) -> list[Demand]:
    """Every property of a town that has lived its life."""
    plan, steps = state["plan"], state["steps"]
    last = plan["generations"]
    values = [steps[f"measure-{number}"]["values"] for number in range(last + 1)]
    whole = exam.gain(values[last], values[0])
    promoted = [n for n in range(1, last + 1) if steps[f"learn-{n}"]["accepted"]]
    by_version = {steps[f"measure-{n}"]["version"]: values[n] for n in range(last + 1)}
    changes = {n: exam.gain(values[n], by_version[_taught(steps, n)]) for n in promoted}
    fallen = [n for n, change in changes.items() if change.interval()[1] < 0]
    minutes = sum(state["seconds"].values()) / 60
    told = "; ".join(f"{n}: {points(change)}" for n, change in changes.items()) or "none was promoted"
    return [
        Demand(
            "Satisfaction is significantly higher in the last generation than in the first.",
            whole.interval()[0] > 0, points(whole),
        ),
        Demand(
            "It falls significantly in none that was promoted.", bool(promoted) and not fallen,
            f"{len(promoted)} of {last} were promoted; change by generation {told}{_taken_back(steps, promoted)}",
        ),
        _adversaries(steps["without-adversaries"], exam),
        _poison(steps, exam),
        _dud(steps),
        *_kills(state),
        Demand(
            f"All of it takes {MOST_MINUTES // 60} hours at most.", minutes <= MOST_MINUTES, f"{minutes:.0f} minutes"
        ),
    ]  # fmt: skip


def _taught(steps: Mapping[str, Any], number: int) -> str:
    """The version that people talked to before a generation learnt from them."""
    return str(steps[f"votes-{number}"]["version"])


def _taken_back(steps: Mapping[str, Any], promoted: Sequence[int]) -> str:
    """Which versions people rolled back while they judged the next time."""
    gone = [
        steps[f"learn-{n}"]["version"] for n in promoted
        if f"votes-{n + 1}" in steps and _taught(steps, n + 1) != steps[f"learn-{n}"]["version"]
    ]  # fmt: skip
    return f"; rolled back by people afterwards: {', '.join(gone)}" if gone else ""


def _adversaries(found: Mapping[str, Any], exam: Exam) -> Demand:
    moved = exam.gain(found["values"], found["silent"])
    return Demand(
        f"The adversaries move it by less than {100 * BOUND:g} points.",
        max(map(abs, moved.interval())) < BOUND,
        f"the first generation's version with their judgments against the one without: {points(moved)}. Chance of "
        "training counts as theirs",
    )


def _poison(steps: Mapping[str, Any], exam: Exam) -> Demand:
    learned, asked = steps["learn-poison"], steps["measure-poison"]
    would = exam.gain(asked["values"], asked["served"])
    people = [name for name in learned["failed"] if name in ("evidence", TRUSTED, ACCOUNTS)]
    harmful = would.interval()[1] < 0
    return Demand(
        "A poisoned snapshot is refused by the gate.",
        # Refused for what is no business of people's, a harmless version would show nothing.
        not learned["accepted"] and learned["served"] != learned["version"] and (bool(people) or harmful),
        f'{learned["version"]}: "{learned["verdict"]}" {learned["served"]} stayed; the other would have changed '
        f"satisfaction by {points(would)}. What people's judgments said against it: {', '.join(people) or 'nothing'}",
    )


def _dud(steps: Mapping[str, Any]) -> Demand:
    dud, before = steps["dud"], steps["before-dud"]["version"]
    return Demand(
        "A promoted dud is rolled back.", dud["served"] == before,
        f"{dud['version']} was promoted by force over {before}; after {dud['visits']} visits {dud['served']} was "
        f"served: \"{dud['verdict']}\"",
    )  # fmt: skip


def _kills(state: Mapping[str, Any]) -> list[Demand]:
    steps, struck = state["steps"], state["kills"]
    check = steps["check"]
    replays = [step for name, step in steps.items() if name.startswith("replay-")]
    trained = sum(kill["what"] == "trainer" for kill in struck)
    told = "; ".join(f"{kill['what']} in {kill['step']} {kill['when']}" for kill in struck) or "nothing"
    return [
        Demand(
            "`kill -9` of server, trainer and supervisor loses no acknowledged judgment.",
            not check["lost"] and {kill["what"] for kill in struck} == {"server", "trainer", "supervisor"},
            f"{check['acknowledged']} judgments in the people's own diaries, {len(check['lost'])} not in the database; "
            f"killed: {told}",
        ),
        Demand(
            "A killed `learn` resumes to the same version.",
            bool(replays) and trained > 0 and all(step["same"] for step in replays),
            f"{sum(step['same'] for step in replays)} of {len(replays)} versions have, bit for bit, the weights of an "
            f"unkilled replay ({trained} of their learnings had been killed)",
        ),
    ]  # fmt: skip


def write_town(folder: Path, hardware: Hardware, state: Mapping[str, Any], exam: Exam, command: str) -> Path:
    """``town.md`` and its picture."""
    plan, found = state["plan"], demands(state, exam)
    minutes = sum(state["seconds"].values()) / 60
    ill = round(ADVERSARIES * plan["raters"])
    lines = [
        "# A simulated town", "",
        f"{machine(hardware)}. Command: `{command}`. {minutes:.0f} minutes in all.", "",
        f"{plan['raters']} people, {ill} of them adversaries, each with {plan['each']} visits a generation over HTTP: "
        "they ask an everyday request, say which of two answers is better, and whether the first is any good. What "
        f"they like is to be spoken to: the share of words that are \"you\" and the like, up to 1 in {1 / ENOUGH:.0f}. "
        f"They choose by Bradley and Terry's model at temperature {DOUBT}; adversaries say the opposite. Satisfaction "
        "is the probability that somebody honest is content with the greedy answer to each of "
        f"{len(exam.items)} requests of wordings that nobody in the town uses; intervals are 95 %, resampled by "
        "wording.", "",
        "| asked for | holds | found |", "|---|---|---|",
        *(f"| {d.asked} | {'yes' if d.holds else '**no**'} | {_cell(d.found)} |" for d in found), "",
        "## Generations", "",
        "| generation | version made | gate | satisfaction with what is served | change |", "|---:|---|---|---|---|",
        *_rows(state, exam), "",
        "![satisfaction by generation](pictures/town.svg)", "",
        "What the gate said:", "",
        *(f"- generation {n}: {state['steps'][f'learn-{n}']['verdict']}" for n in range(1, plan["generations"] + 1)),
        "",
        "## Cost", "", "| | minutes |", "|---|---:|",
        *(f"| {name} | {spent:.1f} |" for name, spent in _phases(state["seconds"])), "",
    ]  # fmt: skip
    atomic.write_text(folder / "pictures" / "town.svg", _curve(state, exam))
    page = folder / "town.md"
    atomic.write_text(page, "\n".join(lines))
    return page


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _rows(state: Mapping[str, Any], exam: Exam) -> list[str]:
    steps, rows, before = state["steps"], [], None
    for number in range(state["plan"]["generations"] + 1):
        values = steps[f"measure-{number}"]["values"]
        figure = exam.mean(values)
        low, high = figure.interval()
        learned = steps.get(f"learn-{number}")
        made = learned["version"] if learned else f"{steps['measure-0']['version']} (the beginning)"
        gate = ("accepted" if learned["accepted"] else "kept") if learned else ""
        change = points(exam.gain(values, before)) if before else ""
        rows.append(
            f"| {number} | {made} | {gate} | {figure.estimate:.1%} ({low:.1%} to {high:.1%}) | {change} |"
        )
        before = values
    return rows


def _phases(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    totals = {
        told: sum(spent for name, spent in seconds.items() if name.startswith(phase)) / 60
        for phase, told in PHASES.items()
    }
    rest = sum(seconds.values()) / 60 - sum(totals.values())
    return [*totals.items(), ("everything else", rest), ("**in all**", sum(seconds.values()) / 60)]


def _curve(state: Mapping[str, Any], exam: Exam) -> str:
    numbers: Sequence[int] = range(state["plan"]["generations"] + 1)
    figures = [exam.mean(state["steps"][f"measure-{number}"]["values"]) for number in numbers]
    ends = [figure.interval() for figure in figures]
    canvas = Canvas(figsize=(7, 3.2), layout="constrained")
    axes = canvas.subplots()
    middle = [100 * figure.estimate for figure in figures]
    below = [m - 100 * low for m, (low, _) in zip(middle, ends, strict=True)]
    above = [100 * high - m for m, (_, high) in zip(middle, ends, strict=True)]
    axes.errorbar(numbers, middle, yerr=[below, above], fmt="o-", capsize=3, color="#3d7ea6")
    axes.set_xticks(numbers)
    axes.set(xlabel="generation", ylabel="satisfaction, per cent", ylim=(0, 100))
    plain(axes)
    return as_svg(canvas, "town")

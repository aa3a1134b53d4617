"""One generation from the same judgments by each method of ``nestling learn``, with several seeds, in one table."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.bench.generations import learned_version
from nestling.bench.household import Household, setting_words
from nestling.bench.report import machine
from nestling.bench.satisfaction import Exam, apart, line_of, served_apart
from nestling.bench.town_report import points
from nestling.compute.device import Hardware
from nestling.workspace import Version, Workspace, atomic

METHODS = {"ppo": "reward model and PPO", "dpo": "DPO", "kto": "KTO", "best-of-n": "best of n"}


def one(
    workspace: Workspace, start: Version, database: Path, method: str, seed: int, settings: Sequence[str], exam: Exam,
    answer_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """One learning in a workspace of its own, and how content the town is with what it made, served or not.

    What was found is kept beside it: the same call again reads it, and one that was stopped goes on.
    """
    folder = workspace.root / "methods" / f"{start.name}-{database.stem}-{method}-{seed}"
    kept = folder / "found.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return found
    place = apart(workspace, folder, line_of(workspace, start), start.name)
    before = [version.name for version in line_of(workspace, start)]
    home = Household(place, "", (), folder / "logs")
    words = ["learn", "--method", method, "--database", str(database)]
    words += setting_words([*settings, f"seed={seed}"])
    began = time.monotonic()
    home.must(words, "learn.log")
    minutes = (time.monotonic() - began) / 60
    made = learned_version(place, before)
    [evidence] = [line for line in made.card.metrics["exam"]["lines"] if line["role"] == "evidence"]
    found = {
        "version": made.name, "accepted": made.card.state == "accepted", "verdict": made.card.verdict,
        "agreement": evidence["gain"], "least": evidence["bound"], "minutes": round(minutes, 1),
        "values": served_apart(place, made.name, exam, answer_tokens, folder / "logs" / "server.log", settings),
    }  # fmt: skip
    atomic.write_json(kept, found)
    return found


def measure(
    workspace: Workspace, start: Version, database: Path, seeds: int, settings: Sequence[str], exam: Exam,
    answer_tokens: int, told: Callable[[str], object],
) -> tuple[list[float], dict[str, list[dict[str, Any]]]]:  # fmt: skip
    """How content the town is with the start, and with what each method made of it, by seed."""
    folder = workspace.root / "methods" / f"{start.name}-{database.stem}-start"
    kept = folder / "found.json"
    if not kept.exists():
        place = apart(workspace, folder, line_of(workspace, start), start.name)
        values = served_apart(place, start.name, exam, answer_tokens, folder / "server.log", settings)
        atomic.write_json(kept, values)
    before: list[float] = json.loads(kept.read_text("utf-8"))
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        for method in METHODS:
            result = one(workspace, start, database, method, seed, settings, exam, answer_tokens)
            found[method].append(result)
            told(
                f"{METHODS[method]}, seed {seed}: {points(exam.gain(result['values'], before))}, {result['verdict']}"
            )
    return before, found


def write_methods(
    folder: Path, hardware: Hardware, start: Version, before: Sequence[float],
    found: Mapping[str, Sequence[Mapping[str, Any]]], exam: Exam, command: str,
) -> Path:  # fmt: skip
    """``methods.md``."""
    first = exam.mean(before)
    lines = [
        "# One generation by each method", "", f"{machine(hardware)}. Command: `{command}`.", "",
        f"All learn from the same snapshot and begin with {start.name} (satisfaction {first.estimate:.1%}). "
        "Satisfaction is the simulated town's ([town](town.md)) with greedy answers to held-out requests, asked of "
        "every version whether the gate let it be served or not; agreement is what the gate saw on held-out people, in "
        "points. Intervals are 95 %; a method's first line is the mean of its seeds, with their range.", "",
        "| method | seed | satisfaction | change | agreement | gate | minutes |", "|---|---|---:|---|---|---|---:|",
    ]  # fmt: skip
    for method, results in found.items():
        means = [statistics.mean(result["values"]) for result in results]
        gains = [mean - statistics.mean(before) for mean in means]
        lines.append(
            f"| **{METHODS[method]}** | all | **{statistics.mean(means):.1%}** | {100 * statistics.mean(gains):+.1f} "
            f"points ({100 * min(gains):+.1f} to {100 * max(gains):+.1f}) | | {sum(r['accepted'] for r in results)} of "
            f"{len(results)} accepted | {statistics.mean(r['minutes'] for r in results):.1f} |"
        )  # fmt: skip
        for seed, result in enumerate(results):
            least = "" if result["least"] is None else f", at least {100 * result['least']:+.1f}"
            lines.append(
                f"| | {seed} | {means[seed]:.1%} | {points(exam.gain(result['values'], before))} | "
                f"{100 * result['agreement']:+.1f}{least} | {'accepted' if result['accepted'] else 'kept'} | "
                f"{result['minutes']:.1f} |"
            )  # fmt: skip
    lines += ["", "What the gate said:", ""]
    lines += [
        f"- {METHODS[method]}, seed {seed}: {result['verdict']}"
        for method, results in found.items() for seed, result in enumerate(results)
    ]  # fmt: skip
    page = folder / "methods.md"
    atomic.write_text(page, "\n".join([*lines, ""]))
    return page

"""``python tests/kill_often.py [KILLS] [SEED]``: raise a tiny assistant under ``kill -9`` at random moments.

One raising runs undisturbed. Others are killed at moments drawn at random, started again each time, and compared with
it to the last bit when they end. 100 kills take about a quarter of an hour; a table of where they struck is printed in
Markdown. The short form, with placed kills, is a test (test_workflow.py).
"""

from __future__ import annotations

import collections
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from rich.progress import track

from nestling.bench.report import processor
from nestling.workspace import EventLog, Workspace
from test_workflow import outcome, start, write_recipe

LONGEST = 1.1
"""Of an undisturbed raising's time: the latest moment of a kill."""


def phase(folder: Path) -> str:
    """Where the diary says that the raising was."""
    [path, *_] = [*Workspace(folder).runs.glob("tiny-*/events.jsonl"), None]
    if path is None:
        return "before the first stage"
    begun = [event["stage"] for event in EventLog(path).read()[0] if event["kind"] == "stage_started"]
    return begun[-1] if begun else "before the first stage"


def killed(recipe: Path, folder: Path, seconds: float) -> bool:
    """Whether the raising was still going on after so many seconds; it is not any more."""
    process = start(folder, recipe)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode == 0, output.decode()
    return False


def main(kills: int = 100, seed: int = 0) -> None:
    """Kill so often, compare whatever ends, and tell where it was."""
    drawn, struck, raised = random.Random(seed), collections.Counter[str](), 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        recipe = write_recipe(root)
        start_time = time.monotonic()
        assert not killed(recipe, root / "whole", 600)
        longest = LONGEST * (time.monotonic() - start_time)
        expected = outcome(root / "whole")
        for _ in track(range(kills), "killing"):
            folder = root / f"killed-{raised}"
            while not killed(recipe, folder, drawn.uniform(0, longest)):
                compare(outcome(folder), expected)
                raised += 1
                folder = root / f"killed-{raised}"
            struck[phase(folder)] += 1
        if not killed(recipe, folder, 600):
            compare(outcome(folder), expected)
            raised += 1
    print(f"\n{date.today().isoformat()}, {platform.system()}, {processor()}.\n")
    print(
        f"{kills} kills (seed {seed}) in {(time.monotonic() - began) / 60:.0f} minutes; {raised} raisings ended,"
    )
    print(
        "each with the same versions, cards, evaluations, rankings and transcripts as the undisturbed one.\n"
    )
    print("| in | kills |\n|---|---:|")
    for name, count in struck.most_common():
        print(f"| {name} | {count} |")


def compare(mine: dict[str, object], theirs: dict[str, object]) -> None:
    """Equal to the last bit, or an error that names what differs."""
    different = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    assert not different, different


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

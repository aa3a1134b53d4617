"""How far a raising has come, as terminal and page tell it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nestling.workflow.progress import STAGES, ProgressReader, fold, line, own_process
from nestling.workspace import EventLog, Workspace


def folded(*events: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"stages": list(STAGES)}
    for event in events:
        state = fold(state, event)
    return state


def progress(stage: str, step: int, total: int, time: float) -> dict[str, Any]:
    return {"kind": "progress", "stage": stage, "step": step, "total": total, "time": time}


def started(stage: str, time: float, **more: Any) -> dict[str, Any]:
    return {"kind": "stage_started", "stage": stage, "time": time, **more}


def test_progress_tells_stage_step_and_time_to_go() -> None:
    run = {"kind": "run_started", "recipe": "mine", "stages": ["sft", "gate-sft"], "process": [1, 0.0]}
    state = folded(run, started("gate-sft", 100.0), progress("gate-sft", 30, 90, 160.0))
    assert state["eta_seconds"] == 120
    assert line(state) == "[2/2] measuring the fine-tuned version  30/90  about 2 min 00 s to go"


def test_what_was_kept_from_before_a_stop_does_not_count_as_fast() -> None:
    kept = [progress("gate-base", step, 3072, time) for step, time in ((1024, 0.5), (2048, 1.0))]
    state = folded(started("gate-base", 0.0), *kept, progress("gate-base", 2304, 3072, 101.0))
    assert state["eta_seconds"] == 300


def test_a_part_of_a_stage_keeps_the_stages_number() -> None:
    events = [started("sft", 0.0), progress("replay", 32, 96, 10.0), progress("replay", 64, 96, 20.0)]
    assert line(folded(*events)) == "[2/9] collecting the base's own good answers  64/96  about 10 s to go"
    assert line(folded(*events, started("sft", 30.0, total=9))) == "[2/9] fine-tuning  0/9"


def test_a_raising_that_was_killed_is_told_as_stopped(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    log = EventLog(workspace.run_folder("mine-1") / "events.jsonl")
    reader = ProgressReader(workspace)
    log.append("published", stage="base", version="v1-base")
    assert reader() is None  # nothing is being raised
    log.append("run_started", recipe="mine", stages=["sft"], process=own_process())
    log.append("step", stage="sft", step=1, total=9, seconds_left=5.0, metrics={})
    assert reader() == reader() and reader()["state"] == "running"  # type: ignore[index]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    log.append("run_started", recipe="mine", stages=["sft"], process=[ended.pid, time.time()])
    assert reader()["state"] == "stopped"  # type: ignore[index]
    someone_else_by_now = [os.getpid(), own_process()[1] - 3600.0]
    log.append("run_started", recipe="mine", stages=["sft"], process=someone_else_by_now)
    assert reader()["state"] == "stopped"  # type: ignore[index]

"""How far a raising has come, read from its diary."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
from rich.console import Console

from nestling.workspace import EventLog, Workspace

TITLES = {
    "base": "getting the base model",
    "replay": "collecting the base's own good answers",
    "sft": "fine-tuning",
    "gate-base": "measuring the base",
    "gate-sft": "measuring the fine-tuned version",
    "rank": "sampling and ranking answers",
    "reward_model": "training the reward model",
    "ppo": "PPO",
    "gate-ppo": "measuring the aligned version",
    "report": "writing the report",
    "train": "learning from people",
    "gate-learned": "measuring what was learned",
}


PARTS = ("replay",)
"""What is shown by a name of its own, within a stage."""

_KEPT_SECONDS = 2.0  # what is done sooner was kept from before a stop, and says nothing of the speed

_SAME_START = 60.0  # seconds by which the clock may have been set since

STAGES = tuple(name for name in TITLES if name not in (*PARTS, "train", "gate-learned"))


Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""By stage, then by figure: (step, value)."""

_POINTS = 200


class ReportedLog(EventLog):
    """An event log that also tells a console, while ``to`` is active."""

    _console: Console | None = None
    _state: dict[str, Any]

    @contextmanager
    def to(self, console: Console) -> Iterator[None]:
        """Show a live status line on a terminal; elsewhere print a line at every new stage and twice a minute."""
        self._console, self._state, self._printed = console, {}, 0.0
        with console.status("starting") as self._status:
            yield
        self._console = None

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = super().append(kind, **fields)
        if self._console is not None:
            self._state = fold(self._state, event)
            self._status.update(line(self._state))
            now = time.monotonic()
            if kind in ("report", "verdict"):
                for text in event.get("sentences", [event.get("text")]):
                    self._console.print(f"  {text}", markup=False, highlight=False)
            elif kind == "stage_started" or (not self._console.is_terminal and now - self._printed > 30):
                self._console.print(line(self._state), markup=False, highlight=False)
                self._printed = now
        return event


class ProgressReader:
    """Follows the newest run of a workspace. Call it as often as you like; it reads only what is new."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._log: EventLog | None = None
        self._offset = 0
        self._state: dict[str, Any] = {}
        self._curves: Curves = {}
        self._reading = threading.Lock()  # every open page asks from a thread of its own

    def __call__(self) -> dict[str, Any] | None:
        """The state of the raising in the keys ``create_app`` documents, or None when there never was one."""
        with self._reading:
            self._catch_up()
            state = self._state
        if state.get("state") == "running" and not _lives(state["process"]):
            return state | {"state": "stopped", "eta_seconds": None}  # killed: it had no time to say so
        return state if "state" in state else None

    def curves(self) -> Curves:
        """How the shown figures of that raising went, by stage; long stages with fewer points."""
        with self._reading:
            self._catch_up()
            return {
                stage: {name: points[:: 1 + len(points) // _POINTS] for name, points in figures.items()}
                for stage, figures in self._curves.items()
            }

    def _catch_up(self) -> None:
        logs = list(self.workspace.runs.glob("*/events.jsonl"))
        if not logs:
            return
        newest = max(logs, key=lambda path: path.stat().st_mtime)
        if self._log is None or self._log.path != newest:
            self._log, self._offset, self._state, self._curves = EventLog(newest), 0, {}, {}
        events, self._offset = self._log.read(self._offset)
        for event in events:
            self._state = fold(self._state, event)
            if event["kind"] == "step":
                self._draw(event)

    def _draw(self, event: dict[str, Any]) -> None:
        figures = self._curves.setdefault(event["stage"], {})
        for name, value in shown_metrics(event.get("metrics", {})).items():
            points = figures.setdefault(name, [])
            while points and points[-1][0] >= event["step"]:
                points.pop()  # gone back to a checkpoint
            points.append((event["step"], value))


def own_process() -> list[float]:
    """This process's number, and when it began: a number alone is given again, after a restart for sure."""
    return [os.getpid(), psutil.Process().create_time()]


def _lives(process: Sequence[float]) -> bool:
    number, began = process
    try:
        return abs(psutil.Process(int(number)).create_time() - began) < _SAME_START
    except psutil.Error:
        return False


def fold(state: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """The state after one more event."""
    kind = event["kind"]
    if kind == "run_started":
        return {"state": "running", "recipe": event["recipe"], "stages": event["stages"],
                "process": event.get("process", [0, 0.0])}  # fmt: skip
    if kind == "run_finished":
        return state | {"state": "finished", "stage": None, "eta_seconds": None}
    if kind == "run_failed":
        return state | {"state": "failed", "message": event["reason"]}
    if kind == "run_stopped":
        return state | {"state": "stopped", "eta_seconds": None}
    if kind == "stage_started":
        first = event.get("step", 0)
        begun = {
            "stage": event["stage"],
            "part": None,
            "step": first,
            "steps": event.get("total"),
            "metrics": {},
        }
        return state | begun | {"started": event["time"], "first": first, "eta_seconds": None}
    if kind in ("step", "progress"):
        left = event.get("seconds_left")
        if kind == "progress":
            at = (
                {"part": event["stage"]}
                if event["stage"] in PARTS
                else {"stage": event["stage"], "part": None}
            )
            spent = event["time"] - state.get("started", event["time"])
            if not at.items() <= state.items() or spent < _KEPT_SECONDS:
                state = state | at | {"started": event["time"], "first": event["step"]}
            elif event["step"] > state["first"]:
                left = spent / (event["step"] - state["first"]) * (event["total"] - event["step"])
        return state | {"step": event["step"], "steps": event["total"], "eta_seconds": left,
                        "metrics": shown_metrics(event.get("metrics", {}))}  # fmt: skip
    if kind == "verdict":
        verdict = {"version": event["version"], "accepted": event["accepted"]}
        return state | {"message": event["sentences"][0], "verdict": verdict}
    if kind == "report":
        return state | {"message": event["text"]}
    return state


def shown_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The few numbers that say most."""
    wanted = (
        "loss",
        "validation_loss",
        "validation_pair_accuracy",
        "pair_accuracy",
        "reward/total",
        "kl",
        "entropy",
    )
    return {name: metrics[name] for name in wanted if isinstance(metrics.get(name), (int, float))}


def line(state: dict[str, Any]) -> str:
    """One line for the terminal."""
    if state.get("state") in ("finished", "failed", "stopped"):
        return f"{state.get('recipe', 'run')}: {state['state']}"
    stages, stage = state.get("stages", []), state.get("stage")
    where = f"[{stages.index(stage) + 1}/{len(stages)}] " if stage in stages else ""
    text = f"{where}{TITLES.get(str(state.get('part') or stage), stage or 'starting')}"
    if state.get("steps"):
        text += f"  {state['step']}/{state['steps']}"
    if state.get("eta_seconds") is not None:
        minutes, seconds = divmod(round(state["eta_seconds"]), 60)
        text += f"  about {minutes} min {seconds:02d} s to go" if minutes else f"  about {seconds} s to go"
    numbers = "  ".join(f"{name} {value:.3g}" for name, value in state.get("metrics", {}).items())
    return f"{text}  {numbers}".rstrip()

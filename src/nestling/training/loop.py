"""The one training loop: steps, progress, checkpoints, exact resume. Stages say what a step is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

from nestling.errors import TrainingStopped, WorkspaceError
from nestling.training.checkpoint import load_checkpoint, save_checkpoint
from nestling.training.learner import Learner
from nestling.workspace import atomic
from nestling.workspace.events import EventLog

_CHECKPOINT_SHARE = 0.02  # of the time may go into checkpoints, where a disk is slow


class Stage(Protocol):
    """What the loop runs: SFT, reward model or PPO.

    A step must depend only on the learner's state, ``state()`` and the step's number: that is what makes a killed
    run resume to the same weights.
    """

    name: str
    learner: Learner[Any]

    @property
    def total_steps(self) -> int: ...

    def step(self, step: int) -> dict[str, float]:
        """Do step number ``step`` (from 0) and return what to log."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything besides the optimizer that later steps depend on, as JSON; asked for at every checkpoint.

        A step that raises ``TrainingStopped`` before its first update must have left it as it was.
        """
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class Progress:
    """Time to go, from the speed of this process's own steps."""

    def __init__(self, done: int, total: int) -> None:
        self.start, self.first, self.total = time.monotonic(), done, total

    def seconds_left(self, done: int) -> float:
        spent = time.monotonic() - self.start
        return spent / max(1, done - self.first) * (self.total - done)


def fit(
    stage: Stage,
    folder: Path,
    events: EventLog,
    *,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> None:
    """Run ``stage`` to its end, continuing from ``folder``'s last checkpoint when there is one.

    Checkpoints are taken by the clock and never change the outcome: the state restores every bit of what a step
    depends on. When a step fails before it has moved any weight, what it started from is saved.

    Raises:
        TrainingStopped: a step failed; the last checkpoint is kept.
    """
    optimizer, total = stage.learner.optimizer, stage.total_steps
    with closing(optimizer):
        done = _resume(stage, folder)
        events.append("stage_started", stage=stage.name, step=done, total=total, resumed=done > 0)
        progress, saved, pause = Progress(done, total), time.monotonic(), checkpoint_seconds
        while done < total:
            updates = optimizer.steps
            try:
                metrics = stage.step(done)
            except TrainingStopped as problem:
                events.append("stage_failed", stage=stage.name, reason=str(problem))
                if done and optimizer.steps == updates:  # nothing has moved yet
                    with suppress(WorkspaceError):  # a full disk is not why training stopped
                        save_checkpoint(folder, done, optimizer.state(), stage.state())
                raise
            done += 1
            left = round(progress.seconds_left(done), 1)
            events.append(
                "step", stage=stage.name, step=done, total=total, seconds_left=left, metrics=metrics
            )
            if on_step:
                on_step(done, total, metrics)
            if (start := time.monotonic()) - saved >= pause and done < total:
                save_checkpoint(folder, done, optimizer.state(), stage.state())
                saved = time.monotonic()
                if checkpoint_seconds:
                    pause = max(checkpoint_seconds, (saved - start) / _CHECKPOINT_SHARE)
        events.append("stage_finished", stage=stage.name, step=done, total=total)


def _resume(stage: Stage, folder: Path) -> int:
    """Take up the last checkpoint in ``folder``; returns how many steps it has behind it, 0 when there is none."""
    atomic.remove_partials(folder)
    found = load_checkpoint(folder)
    if found is None:
        return 0
    step, tensors, state = found
    stage.learner.optimizer.load_state(tensors)
    stage.load_state(state)
    return step

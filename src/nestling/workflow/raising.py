"""What every raising shares: one recipe's folder and diary, stages in order, measuring, the gate's verdict."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from nestling.compute.courtesy import make_way_for
from nestling.compute.process import forget_peak, give_memory_back, peak_memory
from nestling.errors import DataError
from nestling.evaluation.detectors import measure_detectors
from nestling.evaluation.results import Results
from nestling.workflow import stages
from nestling.workflow.gate import GateRule, GateVerdict, Judged, decide
from nestling.workflow.progress import ReportedLog, own_process
from nestling.workflow.recipe import EvaluationConfig, HardwareConfig
from nestling.workspace import Version, Workspace, atomic


class Raising(ABC):
    """Long work in a folder of its own, resumable at every point.

    Attributes:
        title: what the diary and the page call it.
        stage_names: all of them, in order.
    """

    title: str
    stage_names: Sequence[str]
    evaluation: EvaluationConfig
    gate: GateRule
    hardware: HardwareConfig
    checkpoint_seconds: float

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        self.folder: Path = workspace.run_folder(name)
        self.events = ReportedLog(self.folder / "events.jsonl")

    @abstractmethod
    def steps(self) -> None:
        """Do what is left to do, stage after stage."""

    def execute(self, console: Console | None = None) -> None:
        """Do what is left to do, telling ``console`` about it; nothing once it is ``finished``.

        Raises:
            WorkspaceError: another process raises in this workspace.
            NestlingError: a stage failed; the message says what to do.
        """
        if self.finished:
            return
        reported = self.events.to(console) if console else nullcontext()
        with self.workspace.lock("trainer", "the raising of versions"), reported:
            make_way_for(self.workspace.answering_sign)
            self.events.append(
                "run_started", recipe=self.title, stages=self.stage_names, process=own_process()
            )
            try:
                self.steps()
            except BaseException as error:  # told to whoever watches, then passed on
                stopped = isinstance(error, KeyboardInterrupt)
                self.events.append(
                    "run_stopped" if stopped else "run_failed",
                    reason=str(error) or repr(error),
                    hopeless=isinstance(error, DataError),  # the same data will fail again
                )
                raise
            finally:
                make_way_for(None)
            self.events.append("run_finished", recipe=self.title)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: it came to its end and every version it made is there."""
        events = self.events.read()[0]
        made = [event["version"] for event in events if event["kind"] == "published"]
        known = self.workspace.versions.names()
        return bool(events) and events[-1]["kind"] == "run_finished" and set(made).issubset(known)

    def bench(self) -> stages.Bench:
        """The bench of this raising, with its own diary and pace of checkpoints."""
        bench = stages.Bench.open(self.workspace, self.name, self.hardware.detect)
        return replace(bench, events=self.events, checkpoint_seconds=self.checkpoint_seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.events.append("stage_started", stage=name)
        give_memory_back()  # what the stage before kept
        forget_peak()
        start = time.monotonic()
        try:
            yield
        finally:  # what an interrupted attempt took counts too
            seconds = round(time.monotonic() - start, 1)
            self.events.append("stage_cost", stage=name, seconds=seconds, memory=peak_memory())
        self.events.append("stage_finished", stage=name)

    def made(self, name: str, make: Callable[[stages.Bench], Version]) -> Version:
        """A stage that publishes a version."""
        with self.stage(name):
            return make(self.bench().at(name))

    def measured(self, version: Version, base: Results | None, stage: str) -> Results:
        path = self.folder / "evaluation" / f"{version.name}.json"
        with self.stage(stage):
            results = stages.measure(self.bench(), version, "gate", self.evaluation, base, stage)
            results.save(path)
        return results

    def gated(
        self, candidate: Version, base: Version, base_results: Results, stage: str,
        judge: Callable[[Version, Version], Judged] | None = None,
    ) -> GateVerdict:  # fmt: skip
        """Let the gate decide once, against the version that was served then; promote what it accepts.

        A served version of another line (another base, or the same one under another name) was asked other
        questions: a first version of a new line is judged against its own base. ``judge`` gives the evidence for the
        candidate over the incumbent where that is not the checks'.
        """
        path = self.folder / "evaluation" / f"verdict-{candidate.name}.json"
        results = self.measured(candidate, base_results, stage)
        if path.exists():
            verdict = GateVerdict.model_validate_json(path.read_bytes())
        else:
            versions = self.workspace.versions
            incumbent = versions.serving() or base
            if versions.root(incumbent).name != base.name:
                incumbent = base
            if incumbent.name in (candidate.name, base.name):
                incumbent_results = base_results
            else:
                incumbent_results = self.measured(incumbent, base_results, stage)
            judged = judge(candidate, incumbent) if judge else None
            verdict = decide(results, incumbent_results, self.gate, measure_detectors(), judged)
            atomic.write_text(path, verdict.model_dump_json(indent=2))
        self.events.append("verdict", stage=stage, version=candidate.name, accepted=verdict.accepted,
                           incumbent=verdict.incumbent, sentences=verdict.sentences)  # fmt: skip
        rates = {name: round(figure.rate, 4) for name, figure in results.figures.items()}
        exam = {"against": verdict.incumbent, "lines": [line.model_dump() for line in verdict.lines]}
        self.workspace.versions.settle(
            candidate.name, verdict.accepted, verdict.sentences[0], gate=rates, exam=exam
        )
        return verdict


def stop_on_signals() -> None:
    """SIGTERM ends the process like Ctrl-C; every stage survives either at any point."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

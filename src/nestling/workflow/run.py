"""Raising an assistant by a recipe, from the base to the last verdict; resumable at every point."""

from __future__ import annotations

import itertools
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import date
from typing import Any

import torch
from rich.console import Console

from nestling import __version__
from nestling.compute.courtesy import make_way_for
from nestling.compute.process import forget_peak, give_memory_back, peak_memory
from nestling.evaluation.compare import compare
from nestling.evaluation.detectors import measure_detectors
from nestling.evaluation.report import Pictures, write_markdown, write_report
from nestling.evaluation.results import Results
from nestling.model.hf_folder import read_config
from nestling.workflow import materials, stages
from nestling.workflow.gate import GateVerdict, decide
from nestling.workflow.progress import STAGES, ReportedLog, own_process
from nestling.workflow.recipe import Recipe, check_shape, kept_recipe
from nestling.workspace import Version, Workspace, atomic


class Run:
    """One recipe in one workspace. Its folder is named by the recipe and a hash of what is set in it."""

    def __init__(self, workspace: Workspace, recipe: Recipe) -> None:
        self.workspace, self.name = workspace, recipe.run_name
        self.folder = workspace.run_folder(self.name)
        self.recipe = kept_recipe(self.folder / "recipe.json", recipe)
        self.events = ReportedLog(self.folder / "events.jsonl")

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
            atomic.write_json(self.folder / "recipe.json", self.recipe.model_dump(mode="json"))
            make_way_for(self.workspace.answering_sign)
            self.events.append("run_started", recipe=self.recipe.name, stages=STAGES, process=own_process())
            try:
                self._execute()
            except BaseException as error:  # told to whoever watches, then passed on
                stopped = isinstance(error, KeyboardInterrupt)
                self.events.append(
                    "run_stopped" if stopped else "run_failed", reason=str(error) or repr(error)
                )
                raise
            finally:
                make_way_for(None)
            self.events.append("run_finished", recipe=self.recipe.name)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the report is written and every version it is about is there."""
        events = self.events.read()[0]
        made = [event["version"] for event in events if event["kind"] == "published"]
        known = self.workspace.versions.names()
        return bool(events) and events[-1]["kind"] == "run_finished" and set(made).issubset(known)

    def _execute(self) -> None:
        recipe, bench = self.recipe, self.bench()
        with self.stage("base"):
            base = stages.import_base(bench, recipe.base, recipe.assistant)
            check_shape(recipe, read_config(base.folder))
        tuned = self.made("sft", lambda b: stages.sft(b, base, recipe.data, recipe.sft, recipe.seed))
        base_results = self.measured(base, None, "gate-base")
        self.gated(tuned, base, base_results, "gate-sft")
        with self.stage("rank"):
            items = materials.ranking_items(recipe, recipe.rank.prompts)
            rows = stages.rank(bench.at("rank"), tuned, items, recipe.rank)
        scorer = self.made(
            "reward_model",
            lambda b: stages.reward_model(b, tuned, rows, recipe.reward_model, recipe.rank.validation_share),
        )
        prompts = materials.ppo_items(recipe)
        aligned = self.made(
            "ppo", lambda b: stages.ppo(b, tuned, scorer, prompts, recipe.ppo, recipe.data, recipe.seed)
        )
        self.gated(aligned, base, base_results, "gate-ppo")
        with self.stage("report"):
            self.report([base, tuned, aligned])

    def bench(self) -> stages.Bench:
        """The run's bench, with the run's own diary and pace of checkpoints."""
        bench = stages.Bench.open(self.workspace, self.name, self.recipe.hardware.detect)
        return replace(bench, events=self.events, checkpoint_seconds=self.recipe.checkpoint_seconds)

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

    def made(self, name: str, make: Any) -> Version:
        """A stage that publishes a version."""
        with self.stage(name):
            version: Version = make(self.bench().at(name))
        return version

    def measured(self, version: Version, base: Results | None, stage: str) -> Results:
        path = self.folder / "evaluation" / f"{version.name}.json"
        with self.stage(stage):
            results = stages.measure(self.bench(), version, "gate", self.recipe.evaluation, base, stage)
            results.save(path)
        return results

    def gated(self, candidate: Version, base: Version, base_results: Results, stage: str) -> None:
        """Let the gate decide once, against the version that was served then; promote what it accepts.

        A served version of another line (another base, or the same one under another name) was asked other
        questions: a first version of a new line is judged against its own base.
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
            verdict = decide(results, incumbent_results, self.recipe.gate, measure_detectors())
            atomic.write_text(path, verdict.model_dump_json(indent=2))
        self.events.append("verdict", stage=stage, version=candidate.name, accepted=verdict.accepted,
                           incumbent=verdict.incumbent, sentences=verdict.sentences)  # fmt: skip
        rates = {name: round(figure.rate, 4) for name, figure in results.figures.items()}
        exam = {"against": verdict.incumbent, "lines": [line.model_dump() for line in verdict.lines]}
        self.workspace.versions.settle(
            candidate.name, verdict.accepted, verdict.sentences[0], gate=rates, exam=exam
        )

    def report(self, versions: list[Version]) -> None:
        """Write the run's ``report.html`` and ``report.md``."""
        results = [Results.load(self.folder / "evaluation" / f"{version.name}.json") for version in versions]
        events = self.events.read()[0]
        verdicts = {e["version"]: e for e in events if e["kind"] == "verdict"}
        comparisons = [compare(newer, older) for older, newer in itertools.pairwise(results)]
        told: dict[str, Any] = {
            "title": f"{self.recipe.assistant}, raised by {self.recipe.name}",
            "sentences": [f"{name}: {' '.join(e['sentences'])}" for name, e in verdicts.items()],
            "comparisons": comparisons,
            "pictures": Pictures.draw(results, comparisons, events),
            "detectors": list(measure_detectors().values()),
            "events": events,
        }
        write_report(self.folder / "report.html", results, **told)
        write_markdown(self.folder / "report.md", results, facts=self.facts(), **told)

    def facts(self) -> list[str]:
        """When, on what and with which program the run was made."""
        hardware = self.bench().hardware
        return [
            f"{date.today().isoformat()}, nestling {__version__}, torch {torch.__version__},",
            f"{platform.system()} {platform.machine()}, {hardware.device}, {hardware.threads} threads,",
            f"computing in {hardware.dtype}.",
            f"Recipe `{self.name}`.",
        ]


def stop_on_signals() -> None:
    """SIGTERM ends the process like Ctrl-C; every stage survives either at any point."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

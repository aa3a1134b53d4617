"""Raising an assistant by a recipe, from the base to the last verdict; resumable at every point."""

from __future__ import annotations

import itertools
import platform
from datetime import date
from typing import Any

import torch

from nestling import __version__
from nestling.evaluation.compare import compare
from nestling.evaluation.detectors import measure_detectors
from nestling.evaluation.report import Pictures, write_markdown, write_report
from nestling.evaluation.results import Results
from nestling.model.hf_folder import read_config
from nestling.workflow import materials, stages
from nestling.workflow.progress import STAGES
from nestling.workflow.raising import Raising
from nestling.workflow.recipe import Recipe, check_shape, kept_recipe
from nestling.workflow.scaling import scaled
from nestling.workspace import Version, Workspace, atomic


class Run(Raising):
    """One recipe in one workspace. Its folder is named by the recipe and a hash of what is set in it."""

    stage_names = STAGES

    def __init__(self, workspace: Workspace, recipe: Recipe) -> None:
        super().__init__(workspace, recipe.run_name)
        self.use(kept_recipe(self.folder / "recipe.json", recipe))

    def use(self, recipe: Recipe) -> None:
        """Go by this recipe from now on."""
        self.recipe, self.title = recipe, recipe.name
        self.evaluation, self.gate = recipe.evaluation, recipe.gate
        self.hardware, self.checkpoint_seconds = recipe.hardware, recipe.checkpoint_seconds

    def steps(self) -> None:
        if not (self.folder / "recipe.json").exists():
            self.tell_of_other_content()
        atomic.write_json(self.folder / "recipe.json", self.recipe.model_dump(mode="json"))
        with self.stage("base"):
            base = stages.import_base(self.bench(), self.recipe.base, self.recipe.assistant)
            recipe = self.fitted(base)
        tuned = self.made("sft", lambda b: stages.sft(b, base, recipe.data, recipe.sft, recipe.seed))
        base_results = self.measured(base, None, "gate-base")
        self.gated(tuned, base, base_results, "gate-sft")
        with self.stage("rank"):
            items = materials.ranking_items(recipe, recipe.rank.prompts)
            rows = stages.rank(self.bench().at("rank"), tuned, items, recipe.rank)
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

    def tell_of_other_content(self) -> None:
        """Say why a raising begins anew that had begun, or come to its end, with another release's starter content."""
        begins = self.recipe.settings_name
        for path in sorted(self.workspace.runs.glob(f"{begins}*/recipe.json")):
            other = path.parent.name
            if other != self.name and other.removeprefix(begins)[:1] in ("", "-"):
                self.events.append(
                    "report", stage="base",
                    text=f"{other} has the same settings, and began with the starter content of another release. It "
                    "stays as it is; this one begins anew, as half of each would be neither. To go on with that one, "
                    "use its release.",
                )  # fmt: skip

    def fitted(self, base: Version) -> Recipe:
        """The recipe as it is run here (``scaling``), found once and kept beside the recipe as it was given."""
        path, shape = self.folder / "scaled.json", read_config(base.folder)
        check_shape(self.recipe, shape)
        if not path.exists():
            found = scaled(self.recipe, shape, self.bench().hardware)
            atomic.write_json(path, found.recipe.model_dump(mode="json"))
            for note in found.notes:
                self.events.append("report", stage="base", text=note)
        self.use(kept_recipe(path, self.recipe))
        return self.recipe

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

"""``nestling evaluate`` and ``nestling compare``."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from nestling.cli.common import choose_hardware, find_version, hardware_options, workspace_option
from nestling.cli.options import from_config, to_config
from nestling.data import curriculum
from nestling.errors import ConfigError
from nestling.evaluation.changes import changes, show_changes
from nestling.evaluation.compare import compare as compare_results
from nestling.evaluation.compare import comparison_table
from nestling.evaluation.detectors import measure_detectors, measure_refusal_on_pyrit
from nestling.evaluation.evaluate import evaluate as evaluate_generator
from nestling.evaluation.report import write_report
from nestling.evaluation.results import Results, results_table
from nestling.evaluation.suite import Suite, build_suite, own_suite
from nestling.generation.endpoint import Endpoint
from nestling.generation.protocol import Sampling
from nestling.workflow.recipe import EvaluationConfig
from nestling.workflow.stages import Bench, measure
from nestling.workspace import Version, Workspace, atomic

split_option = click.option(
    "--split", type=click.Choice(["gate", "test"]), default="test", show_default=True,
    help="Which prompts: the gate's, or the test prompts nothing else has seen.",
)  # fmt: skip
questions_option = click.option(
    "--questions", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Ask your own questions instead: JSONL rows with a prompt and a check, perhaps a category.",
)  # fmt: skip
json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Write every figure, prompt, answer and verdict here.",
)
html_option = click.option(
    "--html", "html_path", type=click.Path(path_type=Path), help="Write a report page here."
)
prompts_option = click.option(
    "--prompts", type=click.IntRange(1), help="Prompts of every behaviour.  [default: the suite's sizes]"
)
asked_options = from_config(EvaluationConfig, recipe=False)


class _Measuring:
    """Measures versions of a workspace with one progress bar each."""

    def __init__(
        self,
        root: str | None,
        dtype: str,
        threads: int,
        split: Any,
        config: EvaluationConfig,
        questions: Path | None,
    ) -> None:
        self.workspace = Workspace(root)
        self.hardware = choose_hardware(dtype, threads)
        self.split, self.config, self.questions = split, config, questions

    def results(self, version: Version, base: Results | None = None) -> Results:
        name = f"evaluate-{self.hardware.arithmetic.replace('/', '-')}"
        bench = Bench.open(self.workspace, name, lambda: self.hardware)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(f"asking {version.name}")
            tick = lambda done, total: progress.update(task, completed=done, total=total)
            return measure(bench, version, self.split, self.config, base, "evaluate", tick, self.questions)

    def with_base(self, version: Version) -> list[Results]:
        """The base's results (they decide which facts count) and the version's."""
        base = self.workspace.versions.root(version)
        first = self.results(base)
        return [first] if base.name == version.name else [first, self.results(version, first)]


def _of_endpoint(url: str, model: str, suite: Suite, config: EvaluationConfig) -> Results:
    # Nobody can tell whether the model behind a name is still the same: its answers are kept for this run only.
    with Progress(console=Console(stderr=True)) as progress, TemporaryDirectory() as answers:
        task = progress.add_task(f"asking {model}")
        return evaluate_generator(
            Endpoint(url, model), suite, name=model, identity=f"{url}#{model}", cache=Path(answers),
            sampling=Sampling(temperature=0, max_tokens=config.max_new_tokens),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip


def _config(prompts: int | None, **asked: Any) -> EvaluationConfig:
    sizes = dict.fromkeys(curriculum.load().behaviours, prompts) if prompts else {}
    config: EvaluationConfig = to_config(EvaluationConfig, asked, EvaluationConfig(sizes=sizes))
    return config


def _check_places(*places: Path | None) -> None:
    for place in filter(None, places):
        atomic.check_writable(place)


def _write(results: list[Results], json_path: Path | None, html_path: Path | None) -> None:
    Console().print(results_table(results))
    if json_path:
        atomic.write_json(json_path, [result.plain() for result in results])
    if html_path:
        lines = itertools.pairwise(
            results
        )  # versions of one line were asked the same, those of two perhaps not
        pairs = [compare_results(newer, older) for older, newer in lines if newer.suite == older.suite]
        write_report(html_path, results, comparisons=pairs, detectors=list(measure_detectors().values()))


@click.command()
@click.argument("names", nargs=-1, metavar="[VERSION]...")
@click.option(
    "--endpoint",
    metavar="URL",
    help="Measure this OpenAI-compatible server instead, such as http://127.0.0.1:8000/v1.",
)
@click.option("--model", "endpoint_model", help="The model's name at the endpoint.")
@click.option(
    "--assistant", default="Nestling", show_default=True, help="The name an endpoint's assistant goes by."
)
@click.option("--detectors", is_flag=True, help="Measure the checks themselves on labelled answers.")
@click.option(
    "--pyrit",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also on this pyrit wheel's human-labelled refusals.",
)
@split_option
@prompts_option
@questions_option
@asked_options
@json_option
@html_option
@hardware_options
@workspace_option
def evaluate(names: tuple[str, ...], endpoint: str | None, endpoint_model: str | None, assistant: str, detectors: bool,
             pyrit: Path | None, split: str, prompts: int | None, questions: Path | None, json_path: Path | None,
             html_path: Path | None, dtype: str, threads: int, root: str | None, **asked: Any) -> None:  # fmt: skip
    """Measure versions (the served one by default) beside their base, or any OpenAI-compatible server."""
    if (detectors or pyrit) and (names or endpoint or json_path or html_path):
        raise ConfigError("--detectors and --pyrit measure the checks, not a version, and write no file.",
                          remedy="Leave out versions, --endpoint, --json and --html.")  # fmt: skip
    if detectors or pyrit:
        found = [*measure_detectors().values(), *(measure_refusal_on_pyrit(pyrit) if pyrit else [])]
        for quality in found:
            click.echo(quality.sentence())
        return
    _check_places(json_path, html_path)
    config = _config(prompts, **asked)
    if endpoint:
        if names:
            raise ConfigError(f"{names[0]!r} is a version of this workspace, --endpoint is another server.",
                              remedy="Measure them one at a time.")  # fmt: skip
        if not endpoint_model:
            raise ConfigError(
                "--endpoint needs --model.", remedy="Name the model as the server lists it at /v1/models."
            )
        if questions is not None:
            suite = own_suite(questions, assistant)
        else:
            suite = build_suite(split, config.seed, sizes=config.sizes, assistant=assistant)  # type: ignore[arg-type]
        _write([_of_endpoint(endpoint, endpoint_model, suite, config)], json_path, html_path)
        return
    bench = _Measuring(root, dtype, threads, split, config, questions)
    results: list[Results] = []
    for version in [find_version(bench.workspace, name, answers=True) for name in names or (None,)]:
        measured = bench.with_base(version)
        results += [r for r in measured if r.name not in {known.name for known in results}]
    _write(results, json_path, html_path)


@click.command()
@click.argument("first")
@click.argument("second")
@click.option(
    "--changed", type=click.IntRange(1), help="Show so many prompts whose verdict changed, with both answers."
)
@split_option
@prompts_option
@questions_option
@asked_options
@json_option
@hardware_options
@workspace_option
def compare(first: str, second: str, changed: int | None, split: str, prompts: int | None, questions: Path | None,
            json_path: Path | None, dtype: str, threads: int, root: str | None, **asked: Any) -> None:  # fmt: skip
    """How much version FIRST gains over version SECOND, on the same prompts."""
    _check_places(json_path)
    bench = _Measuring(root, dtype, threads, split, _config(prompts, **asked), questions)
    versions = [find_version(bench.workspace, name, answers=True) for name in (first, second)]
    base = bench.with_base(versions[0])[0]
    a, b = (base if v.name == base.name else bench.results(v, base) for v in versions)
    comparison = compare_results(a, b)
    Console().print(comparison_table(comparison))
    if changed:
        show_changes(Console(), a.name, b.name, changes(a, b), changed)
    if json_path:
        atomic.write_text(json_path, comparison.model_dump_json(indent=2))

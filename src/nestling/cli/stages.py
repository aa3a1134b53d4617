"""``fetch``, ``sft``, ``rank``, ``reward-model`` and ``ppo``: the stages of a recipe, one at a time."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from nestling.cli.common import choose_hardware, find_version, hardware_options, workspace_option
from nestling.cli.options import from_config, to_config
from nestling.config import Config
from nestling.data.curriculum import Item
from nestling.data.formats import CheckedPrompt, read_rows
from nestling.training.ppo import PPOConfig
from nestling.training.reward_model import RewardModelConfig
from nestling.training.sft import SFTConfig
from nestling.workflow import materials, stages
from nestling.workflow.fetch import DEFAULT_BASE, progress_bar
from nestling.workflow.recipe import RankConfig, Recipe, file_digest, load_recipe
from nestling.workflow.stages import Bench
from nestling.workspace import Version, Workspace

recipe_option = click.option(
    "--recipe",
    "recipe_name",
    default="quickstart",
    show_default=True,
    help="Where settings come from that are not given.",
)
version_option = click.option(
    "--version", "name", help="Which version to start from.  [default: the served one]"
)

prompts_option = click.option(
    "--prompt-file",
    "file",
    type=click.Path(exists=True, dir_okay=False),
    help="Prompts with checks, JSONL.  [default: the recipe's]",
)
PROMOTE = "Serve it with: nestling versions promote"


@click.command()
@click.argument("base", default=DEFAULT_BASE)
@click.option("--name", "assistant", default="Nestling", show_default=True, help="The assistant's name.")
@hardware_options
@workspace_option
def fetch(base: str, assistant: str, dtype: str, threads: int, root: str | None) -> None:
    """Get BASE (a known name, a folder, a .gguf file or a hub id) and make it a version."""
    bench = Bench.open(Workspace(root), f"fetch-{dtype}-{threads}", lambda: choose_hardware(dtype, threads))
    with progress_bar() as report:
        made = stages.import_base(bench, base, assistant, report)
    click.echo(f"{made.name}: {made.folder}")


class Call:
    """What every stage's command is given: where it works, its settings over the recipe's, what it starts from."""

    def __init__(
        self, section: str, options: dict[str, Any], *, name: str | None, recipe_name: str, dtype: str,
        threads: int, root: str | None,
    ) -> None:  # fmt: skip
        self.workspace, recipe = Workspace(root), load_recipe(recipe_name)
        before: Config = getattr(recipe, section)
        self.section, self.config = section, to_config(type(before), options, before)
        self.parent = find_version(self.workspace, name, answers=True)
        self._known = {version.name for version in self.workspace.versions.list()}
        mine = {section: self.config, "assistant": self.parent.card.assistant}
        self.recipe: Recipe = recipe.model_copy(update=mine)
        given = {"dtype": dtype, "threads": threads}
        self._hardware = recipe.hardware.model_copy(
            update={key: value for key, value in given.items() if value not in ("auto", 0)}
        )

    def show(self, files: Sequence[str], starter: bool) -> None:
        """Replace the recipe's conversations by these, or add these to them."""
        changes: dict[str, Any] = {"files": [str(Path(f).resolve()) for f in files]}
        if not starter:
            changes |= {"demonstrations": {}, "replay": 0}
        data = self.recipe.data.model_copy(update=changes)
        self.recipe = self.recipe.model_copy(update={"data": data})

    @contextmanager
    def bench(self, *more: object) -> Iterator[Bench]:
        """The bench of this command with these inputs: the same command goes on where it stopped.

        Other trainings are kept out of the workspace meanwhile, and the terminal is told how it goes.
        """
        wanted = [self.parent.name, self.recipe.fingerprint, self._hardware.model_dump(), *map(str, more)]
        name = f"{self.section}-{materials.digest(wanted)[:10]}"
        with self.workspace.lock("trainer", "the raising of versions"):
            bench = Bench.open(self.workspace, name, lambda: self._hardware.detect().apply())
            with bench.events.to(Console(stderr=True)), bench.nothing_left_of_a_refusal():
                yield bench

    def published(self, version: Version) -> None:
        """Say what there is now and what to do with it."""
        is_reward_model = version.card.kind == "reward_model"
        use = "Use it with: nestling ppo --reward-model" if is_reward_model else PROMOTE
        done = "This was done before, as" if version.name in self._known else "Published"
        Console().print(f"{done} {version.name} ({version.card.state}). {use} {version.name}")
        if version.card.metrics.get("sft", {}).get("still_falling"):
            click.echo("The validation loss was still falling: more data or epochs may help.")


def stage_options(section: str, config: type[Config]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options all stages share and one for each of its settings; it is called with a ``Call``."""
    names = ("name", "recipe_name", "dtype", "threads", "root")

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = set(inspect.signature(command).parameters)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            shared = {key: values.pop(key) for key in names}
            mine = {key: values.pop(key) for key in own & set(values)}
            command(Call(section, values, **shared), **mine)

        for option in (
            workspace_option,
            hardware_options,
            from_config(config),
            recipe_option,
            version_option,
        ):
            run = option(run)
        return run

    return decorate


def conversation_options(command: Callable[..., None]) -> Callable[..., None]:
    """--data and --starter: which conversations a stage is shown."""
    starter = click.option(
        "--starter/--no-starter", default=True, show_default=True, help="Also the recipe's own conversations."
    )
    files = click.option(
        "--data", "files", multiple=True, type=click.Path(exists=True, dir_okay=False),
        help="Conversations: JSONL, JSON or CSV; may be given often.",
    )  # fmt: skip
    return files(starter(command))


@click.command()
@conversation_options
@stage_options("sft", SFTConfig)
def sft(call: Call, files: tuple[str, ...], starter: bool) -> None:
    """Fine-tune a version on conversations."""
    call.show(files, starter)
    with call.bench() as bench:
        call.published(stages.sft(bench, call.parent, call.recipe.data, call.config, call.recipe.seed))


@click.command()
@prompts_option
@stage_options("rank", RankConfig)
def rank(call: Call, file: str | None) -> None:
    """Sample answers to prompts and rank them by the checks."""
    config = call.recipe.rank
    items = _items(file) if file else materials.ranking_items(call.recipe, config.prompts)
    with call.bench(file and file_digest(Path(file))) as bench:
        rows = stages.rank(bench, call.parent, items, config)
    click.echo(f"{len(rows)} rankings: {bench.folder / 'rankings.jsonl'}")


@click.command("reward-model")
@click.option(
    "--data", "file", required=True, type=click.Path(exists=True, dir_okay=False), help="Rankings, JSONL."
)
@click.option(
    "--validation-share", type=click.FloatRange(0, 0.5, min_open=True),
    help="Share of the rankings kept for validation.  [default: what the recipe says]",
)  # fmt: skip
@stage_options("reward_model", RewardModelConfig)
def reward_model(call: Call, file: str, validation_share: float | None) -> None:
    """Train a reward model on rankings."""
    validation_share = validation_share or call.recipe.rank.validation_share
    rows = stages.stored_rankings(Path(file))
    with call.bench(materials.digest(rows), validation_share) as bench:
        made = stages.reward_model(bench, call.parent, rows, call.recipe.reward_model, validation_share)
    click.echo(stages.describe_reward_model(made.card.metrics["reward_model"]))
    call.published(made)


@click.command()
@click.option("--reward-model", "scorer_name", help="Which reward model version; without one, rules alone.")
@prompts_option
@conversation_options
@stage_options("ppo", PPOConfig)
def ppo(call: Call, scorer_name: str | None, file: str | None, files: tuple[str, ...], starter: bool) -> None:
    """Align a version by PPO; conversations take part in its updates where --demonstration-coef is above 0."""
    call.show(files, starter)
    items = _items(file) if file else materials.ppo_items(call.recipe)
    scorer = call.workspace.versions.with_weights(scorer_name) if scorer_name else None
    with call.bench(scorer_name, file and file_digest(Path(file))) as bench:
        call.published(
            stages.ppo(bench, call.parent, scorer, items, call.recipe.ppo, call.recipe.data, call.recipe.seed)
        )


def _items(file: str) -> list[Item]:
    """Prompts of a file as training items."""
    return [
        Item(
            id=f"{Path(file).name}:{number}", behaviour=row.category or "file", split="train", template=str(number),
            messages=tuple(row.prompt), check=row.check,
        )
        for number, row in enumerate(read_rows(Path(file), CheckedPrompt), 1)
    ]  # fmt: skip

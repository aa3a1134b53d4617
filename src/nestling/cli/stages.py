"""``fetch``, ``sft``, ``rank``, ``reward-model`` and ``ppo``: the stages of a recipe, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from nestling.cli.common import choose_hardware, find_version, hardware_options, workspace_option
from nestling.cli.options import from_config, to_config
from nestling.data.curriculum import Item
from nestling.data.formats import CheckedPrompt, read_rows
from nestling.training.ppo import PPOConfig
from nestling.training.reward_model import RewardModelConfig
from nestling.training.sft import SFTConfig
from nestling.workflow import materials, stages
from nestling.workflow.fetch import DEFAULT_BASE, progress_bar
from nestling.workflow.recipe import RankConfig, Recipe, load_recipe
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
    bench = Bench.open(Workspace(root), "fetch", choose_hardware(dtype, threads))
    with progress_bar() as report:
        made = stages.import_base(bench, base, assistant, report)
    click.echo(f"{made.name}: {made.folder}")


def _published(version: Version) -> None:
    remark = version.card.metrics.get("sft", {})
    use = "Use it with: nestling ppo --reward-model" if version.card.kind == "reward_model" else PROMOTE
    Console().print(f"Published {version.name} ({version.card.state}). {use} {version.name}")
    if remark.get("still_falling"):
        click.echo("The validation loss was still falling: more data or epochs may help.")


@click.command()
@version_option
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Conversations, JSONL; may be given often.",
)
@click.option(
    "--starter/--no-starter", default=True, show_default=True, help="Also the starter curriculum and replay."
)
@recipe_option
@from_config(SFTConfig)
@hardware_options
@workspace_option
def sft(name: str | None, files: tuple[str, ...], starter: bool, recipe_name: str, dtype: str, threads: int,
        root: str | None, **options: Any) -> None:  # fmt: skip
    """Fine-tune a version on conversations."""
    workspace, recipe = Workspace(root), load_recipe(recipe_name)
    data: dict[str, Any] = {"files": [str(Path(f).resolve()) for f in files]}
    if not starter:
        data |= {"demonstrations": {}, "replay": 0}
    changed = _changed(
        recipe, sft=to_config(SFTConfig, options, recipe.sft), data=recipe.data.model_copy(update=data)
    )
    parent = find_version(workspace, name)
    bench = Bench.open(workspace, _run_name("sft", parent, changed), choose_hardware(dtype, threads))
    with workspace.lock("trainer", "the raising of versions"):
        _published(stages.sft(bench, parent, changed))


@click.command()
@version_option
@prompts_option
@recipe_option
@from_config(RankConfig)
@hardware_options
@workspace_option
def rank(name: str | None, file: str | None, recipe_name: str, dtype: str, threads: int, root: str | None,
         **options: Any) -> None:  # fmt: skip
    """Sample answers to prompts and rank them by the checks."""
    workspace, recipe = Workspace(root), load_recipe(recipe_name)
    config: RankConfig = to_config(RankConfig, options, recipe.rank)
    items = _items(file) if file else materials.ranking_items(recipe, config.prompts)
    parent = find_version(workspace, name)
    changed = _changed(recipe, rank=config)
    bench = Bench.open(workspace, _run_name("rank", parent, changed, file), choose_hardware(dtype, threads))
    rows = stages.rank(bench, parent, items, config)
    click.echo(f"{len(rows)} rankings: {bench.folder / 'rankings.jsonl'}")


@click.command("reward-model")
@version_option
@click.option(
    "--data", "file", required=True, type=click.Path(exists=True, dir_okay=False), help="Rankings, JSONL."
)
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.15,
    show_default=True,
    help="Share kept for validation.",
)
@recipe_option
@from_config(RewardModelConfig)
@hardware_options
@workspace_option
def reward_model(name: str | None, file: str, validation_share: float, recipe_name: str, dtype: str, threads: int,
                 root: str | None, **options: Any) -> None:  # fmt: skip
    """Train a reward model on rankings."""
    workspace, recipe = Workspace(root), load_recipe(recipe_name)
    config: RewardModelConfig = to_config(RewardModelConfig, options, recipe.reward_model)
    parent, rows = find_version(workspace, name), stages.stored_rankings(Path(file))
    changed = _changed(recipe, reward_model=config)
    bench = Bench.open(
        workspace,
        _run_name("reward", parent, changed, materials.digest(rows)),
        choose_hardware(dtype, threads),
    )
    with workspace.lock("trainer", "the raising of versions"):
        made = stages.reward_model(bench, parent, rows, config, validation_share)
    click.echo(stages.describe_reward_model(made.card.metrics["reward_model"]))
    _published(made)


@click.command()
@version_option
@click.option("--reward-model", "scorer_name", help="Which reward model version; without one, rules alone.")
@prompts_option
@recipe_option
@from_config(PPOConfig)
@hardware_options
@workspace_option
def ppo(name: str | None, scorer_name: str | None, file: str | None, recipe_name: str, dtype: str, threads: int,
        root: str | None, **options: Any) -> None:  # fmt: skip
    """Align a version by PPO."""
    workspace, recipe = Workspace(root), load_recipe(recipe_name)
    config: PPOConfig = to_config(PPOConfig, options, recipe.ppo)
    items = _items(file) if file else materials.ppo_items(recipe)
    parent = find_version(workspace, name)
    scorer = workspace.versions.get(scorer_name) if scorer_name else None
    changed = _changed(recipe, ppo=config)
    bench = Bench.open(
        workspace, _run_name("ppo", parent, changed, scorer_name, file), choose_hardware(dtype, threads)
    )
    with workspace.lock("trainer", "the raising of versions"):
        _published(stages.ppo(bench, parent, scorer, items, config))


def _changed(recipe: Recipe, **sections: Any) -> Recipe:
    return recipe.model_copy(update=sections)


def _run_name(kind: str, parent: Version, recipe: Recipe, *more: object) -> str:
    """The same command on the same version is the same run: it resumes."""
    return f"{kind}-{materials.digest([parent.name, recipe.fingerprint, *map(str, more)])[:10]}"


def _items(file: str) -> list[Item]:
    """Prompts of a file as training items."""
    return [
        Item(
            id=f"{Path(file).name}:{number}", behaviour=row.category or "file", split="train", template=str(number),
            messages=tuple(row.prompt), check=row.check,
        )
        for number, row in enumerate(read_rows(Path(file), CheckedPrompt), 1)
    ]  # fmt: skip

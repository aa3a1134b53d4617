"""``nestling up`` and ``nestling run``."""

from __future__ import annotations

import functools
import os
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from nestling.cli.common import workspace_option
from nestling.cli.options import settings_table
from nestling.compute.process import give_memory_back
from nestling.config import parse
from nestling.serving.address import listen
from nestling.serving.settings import ServerSettings, hash_token
from nestling.supervisor import Supervisor, exit_with_parent
from nestling.workflow.estimate import estimate_table, shape_of
from nestling.workflow.fetch import progress_bar
from nestling.workflow.pace import measured_pace
from nestling.workflow.raising import stop_on_signals
from nestling.workflow.recipe import Recipe, check_shape, load_recipe
from nestling.workflow.run import Run
from nestling.workflow.scaling import scaled
from nestling.workflow.stages import import_base
from nestling.workspace import Workspace

_SET_HELP = (
    "Change a recipe's setting, such as ppo.kl_coef=0.05; may be given often. "
    "`nestling run --settings` says what there is."
)


@dataclass(frozen=True)
class Asked:
    """What ``up`` and ``run`` are given about the raising, over the recipe's own settings."""

    recipe_name: str
    settings: tuple[str, ...]
    base: str | None
    assistant: str | None
    files: tuple[str, ...]

    def recipe(self) -> Recipe:
        given = {"base": self.base, "assistant": self.assistant}
        overrides = {key: value for key, value in given.items() if value is not None}
        return load_recipe(self.recipe_name, self.settings, overrides, self.files)

    @property
    def words(self) -> list[str]:
        """The same as words of a command line."""
        words = [word for setting in self.settings for word in ("--set", setting)]
        words += ["--base", self.base] if self.base is not None else []
        words += ["--name", self.assistant] if self.assistant is not None else []
        return [self.recipe_name, *words, *(word for file in self.files for word in ("--data", file))]


def _raising_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a raising; the command is called with them as ``asked``."""

    @functools.wraps(command)
    def run(recipe_name: str, settings: tuple[str, ...], base: str | None, assistant: str | None,
            files: tuple[str, ...], **others: Any) -> None:  # fmt: skip
        whole = tuple(str(Path(file).resolve()) for file in files)
        command(Asked(recipe_name, settings, base, assistant, whole), **others)

    for option in (
        click.option(
            "--data", "files", multiple=True, type=click.Path(exists=True, dir_okay=False),
            help="Your own conversations, to learn from beside the recipe's: JSONL, JSON or CSV; may be given often.",
        ),
        click.option("--name", "assistant", help="The assistant's name.  [default: Nestling]"),
        click.option("--base", help="Base model: a known name, a folder, a .gguf file or a hub id."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=_SET_HELP),
    ):  # fmt: skip
        run = option(run)
    return run


def _tell_settings(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        Console().print(settings_table(Recipe))
        context.exit()


def tell_estimate(recipe: Recipe, console: Console) -> None:
    """What the recipe would take here, fitted to the data, the model and this machine."""
    hardware, shape = recipe.hardware.detect(), shape_of(recipe)
    check_shape(recipe, shape)
    with console.status("Measuring this machine"):
        pace = measured_pace(shape, hardware)
    fitted = scaled(recipe, shape, hardware, pace=pace)
    for note in fitted.notes:
        console.print(note, markup=False, highlight=False)
    console.print(estimate_table(fitted.recipe, shape, hardware, pace))


@click.command()
@click.option(
    "--recipe", "recipe_name", default="quickstart", show_default=True, help="Recipe name or YAML file."
)
@_raising_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="TCP port.")
@click.option(
    "--allowed-hosts",
    multiple=True,
    metavar="NAME",
    help="Further names under which browsers reach the server.",
)
@click.option(
    "--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Answers generated at a time."
)
@click.option("--no-train", is_flag=True, help="Only serve.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and stop.")
@workspace_option
def up(asked: Asked, host: str, port: int, allowed_hosts: tuple[str, ...], max_batch: int, no_train: bool,
       open_page: bool, dry_run: bool, root: str | None) -> None:  # fmt: skip
    """Get a base model, serve it, and raise it meanwhile.

    An accepted version takes over live. Stop it at any moment; the next `nestling up` goes on.
    """
    workspace, console = Workspace(root), Console()
    recipe = asked.recipe()
    if dry_run:
        tell_estimate(recipe, console)
        return
    token = os.environ.get("NESTLING_TOKEN")
    token_hash = hash_token(token) if token else None
    address = parse(ServerSettings, {"host": host, "port": port, "token_hash": token_hash}, "serve")
    with workspace.lock("up", "this workspace"):
        with listen(address) as listener:  # refused now, not after the download
            port = listener.getsockname()[1]  # of several free ones, where 0 was given
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        run = Run(workspace, recipe)
        with progress_bar() as report:
            first = import_base(run.bench(), recipe.base, recipe.assistant, report)
        give_memory_back()  # the import's; from here on this process only watches
        served = workspace.versions.serving() or first
        console.print(f"Version [bold]{served.name}[/bold] is about to be served at {url}")
        place = ["--workspace", str(workspace.root)]
        serve = ["serve", *place, "--host", host, "--port", str(port)]
        serve += ["--max-batch", str(max_batch)]
        serve += ["--dtype", recipe.hardware.dtype, "--threads", str(recipe.hardware.threads)]
        serve += [word for name in allowed_hosts for word in ("--allowed-hosts", name)]
        train = None if no_train else ["run", *asked.words, *place, "--quiet"]
        show = (lambda: webbrowser.open(url)) if open_page else None
        sys.exit(Supervisor(workspace, serve, train, console, show, (host, port)).run())


@click.command()
@click.argument("recipe_name", metavar="RECIPE")
@_raising_options
@click.option("--dry-run", is_flag=True, help="Say what it would take, and stop.")
@click.option("--quiet", is_flag=True, help="Report to the run's diary only.")
@click.option(
    "--settings",
    "tell_settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_settings,
    help="Say what every key of a recipe and of --set means, and stop.",
)
@workspace_option
def run(asked: Asked, dry_run: bool, quiet: bool, root: str | None) -> None:
    """Raise by a recipe, headless, and end with a report."""
    exit_with_parent()
    stop_on_signals()
    recipe, console = asked.recipe(), Console(quiet=quiet)
    if dry_run:
        tell_estimate(recipe, console)
        return
    running = Run(Workspace(root), recipe)
    running.execute(console)
    console.print(f"Report: {running.folder / 'report.html'}", highlight=False)

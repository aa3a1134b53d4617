"""``nestling learn``: what people said becomes the next version, if it is better."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console

from nestling.cli.common import workspace_option
from nestling.cli.options import settings_table
from nestling.errors import NestlingError
from nestling.feedback.snapshot import Snapshot, take
from nestling.storage import Database, open_database
from nestling.supervisor import exit_with_parent
from nestling.workflow.learn import Learn, anchors
from nestling.workflow.learn_recipe import LearnRecipe, load_learn_recipe
from nestling.workflow.lineage import replay, tried_judgments
from nestling.workflow.raising import stop_on_signals
from nestling.workspace import Workspace
from nestling.workspace.versions import now

_LOOK_SECONDS = 20.0


def _tell_settings(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        Console().print(settings_table(LearnRecipe))
        context.exit()


@click.command()
@click.option(
    "--method",
    type=click.Choice(["dpo", "kto", "ppo", "best-of-n"]),
    help="How to learn.  [default: what the recipe says]",
)
@click.option(
    "--recipe",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings from this YAML file.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; may be given often."
)
@click.option("--watch", is_flag=True, help="Stay, and learn whenever enough new judgments have come.")
@click.option(
    "--replay",
    "name",
    metavar="VERSION",
    help="Train a version again from its snapshot, and compare the weights.",
)
@click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")
@click.option("--dry-run", is_flag=True, help="Take the snapshot, say what it holds, and stop.")
@click.option("--quiet", is_flag=True, help="Report to the run's diary only.")
@click.option(
    "--settings", "tell_settings", is_flag=True, is_eager=True, expose_value=False, callback=_tell_settings,
    help="Say what every setting means, and stop.",
)  # fmt: skip
@workspace_option
def learn(method: str | None, path: Path | None, settings: tuple[str, ...], watch: bool, name: str | None,
          database: str | None, dry_run: bool, quiet: bool, root: str | None) -> None:  # fmt: skip
    """Learn from what people said: snapshot, training, the gate's verdict, and a swap if it is better.

    Judgments come from the page and the API. What was begun is finished first.
    """
    exit_with_parent()
    stop_on_signals()
    workspace, console = Workspace(root), Console(quiet=quiet)
    if name is not None:
        same = replay(workspace, workspace.versions.with_weights(name), console)
        click.echo(f"{name} trained again from its snapshot has {'the same' if same else 'other'} weights.")
        raise SystemExit(0 if same else 1)
    given = (f"method={method}",) if method else ()
    recipe = load_learn_recipe(path, (*given, *settings))
    opened = open_database(database or workspace.database_path, create=False)
    while True:
        newest = _newest(opened)
        missing = 0  # where something was learnt, or failed, whatever has come meanwhile is looked at soon
        try:
            told, missing = _once(workspace, recipe, opened, console, dry_run)
        except NestlingError as error:
            if not watch:
                raise
            told = str(error)  # a batch that cannot be learnt from must not end the watch
        console.print(told, markup=False, highlight=False)
        if not watch:
            return
        time.sleep(_LOOK_SECONDS)
        while Learn.unfinished(workspace) is None and _newest(opened) < newest + missing:
            time.sleep(_LOOK_SECONDS)


def _once(
    workspace: Workspace, recipe: LearnRecipe, database: Database, console: Console, dry_run: bool
) -> tuple[str, int]:
    """Finish what was begun, or begin with what is new; says what came of it, and how many judgments are missing."""
    begun = Learn.unfinished(workspace)
    if begun is None:
        snapshot = take(database, workspace.root / "snapshots", recipe.snapshot, now(), anchors(workspace))
        _describe(snapshot, console)
        fresh = len(snapshot.manifest.new - tried_judgments(workspace, recipe))
        if dry_run or fresh < recipe.least_new:
            return (
                f"{fresh} new judgments; learning begins at {recipe.least_new} (least_new).",
                recipe.least_new - fresh,
            )
        serving = workspace.versions.serving()
        if serving is None:
            return "There is no version to learn from yet. Run `nestling up`.", 0
        begun = Learn(workspace, recipe, snapshot, serving)
    elif dry_run:
        return f"{begun.name} ({begun.recipe.method}) was begun; `nestling learn` finishes it first.", 0
    else:
        told = f"Going on with {begun.name} as it was begun (method {begun.recipe.method})."
        console.print(told, markup=False, highlight=False)
    begun.execute(console)
    verdict = [event for event in begun.events.read()[0] if event["kind"] == "verdict"][-1]
    return " ".join(verdict["sentences"]), 0


def _describe(snapshot: Snapshot, console: Console) -> None:
    manifest = snapshot.manifest
    fates = (
        ", ".join(f"{count} {fate.replace('_', ' ')}" for fate, count in sorted(manifest.fates.items()))
        or "none"
    )
    console.print(
        f"Snapshot {manifest.name}: {fates}; split by {manifest.split}.", markup=False, highlight=False
    )


def _newest(database: Database) -> int:
    """The number of the last judgment."""
    from sqlalchemy import func, select

    from nestling.storage import Judgment

    with database.read() as session:
        return session.scalar(select(func.max(Judgment.id))) or 0

"""``nestling desk``: lay answers on the desk for people to judge, and see what has become of them."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from nestling.cli.common import choose_hardware, find_version, hardware_options, workspace_option
from nestling.errors import ConfigError, DataError
from nestling.feedback.desk import Desk
from nestling.feedback.recorder import Recorder
from nestling.generation.protocol import Sampling
from nestling.storage import Database, open_database
from nestling.workflow import desk as laying
from nestling.workflow.stages import Bench
from nestling.workspace import Workspace

database_option = click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")


@click.group()
def desk() -> None:
    """Lay answers on the desk for people to judge (the page's /desk), and see what has become of them."""


def _database(workspace: Workspace, place: str | None) -> Database:
    return open_database(place or workspace.database_path)


@desk.command()
@click.option("--prompts", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Ask the prompts of this file.  [default: the starter's]")  # fmt: skip
@click.option(
    "--from-chats",
    is_flag=True,
    help="Ask what people asked last in their chats: whoever judges reads what others wrote.",
)
@click.option("--count", type=click.IntRange(1), default=30, show_default=True, help="Prompts.")
@click.option("--answers", type=click.IntRange(2, 16), default=4, show_default=True, help="Answers to each.")
@click.option(
    "--version", "names", multiple=True, help="Which versions answer, in turns.  [default: the served one]"
)
@click.option("--reward-model", "judge", help="Show first where this reward model is least sure.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Of the answers."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=96, show_default=True, help="Longest answer."
)
@database_option
@hardware_options
@workspace_option
def fill(
    file: Path | None, from_chats: bool, count: int, answers: int, names: tuple[str, ...], judge: str | None,
    temperature: float, max_new_tokens: int, database: str | None, dtype: str, threads: int, root: str | None,
) -> None:  # fmt: skip
    """Let versions answer prompts, several answers to each, and lay them on the desk."""
    if file and from_chats:
        raise ConfigError("--prompts and --from-chats name two sources.", remedy="Give one of the two.")
    workspace = Workspace(root)
    opened, hardware = _database(workspace, database), choose_hardware(dtype, threads)
    versions = [find_version(workspace, name, answers=True) for name in names or (None,)]
    scorer = workspace.versions.with_weights(judge) if judge else None
    if file:
        prompts = list(laying.prompts_of(file))[:count]
    elif from_chats:
        prompts = laying.recent_prompts(opened, count)
    else:
        prompts = laying.starter_prompts(count, 0, versions[0].card.assistant)
    if not prompts:
        raise DataError(
            "nobody has asked anything in a chat yet.", remedy="Leave --from-chats out, or give --prompts."
        )
    bench = Bench.open(workspace, f"desk-{hardware.arithmetic.replace('/', '-')}", lambda: hardware)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("answering")
        new = laying.fill(
            bench, Desk(opened), Recorder(opened), prompts, versions, answers, scorer,
            Sampling(temperature, max_tokens=max_new_tokens),
            lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if not new:
        raise DataError(
            "nothing new came onto the desk.",
            remedy="Answers were alike, or lie there already: raise --temperature, or give other prompts.",
        )
    click.echo(f"{new} questions lie on the desk; people judge them at /desk of the page.")


@desk.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@database_option
@workspace_option
def gold(file: Path, database: str | None, root: str | None) -> None:
    """Lay rankings whose order is known on the desk, now and then shown between the others.

    They tell how far a rater can be relied on, and anchor what the gate measures by.
    """
    opened = _database(Workspace(root), database)
    click.echo(
        f"{laying.lay_gold(Desk(opened), Recorder(opened), file)} questions with a known order are new."
    )


@desk.command()
@database_option
@workspace_option
def status(database: str | None, root: str | None) -> None:
    """What lies on the desk, who has judged it, and how far they agree."""
    table = Table("item", "question", "judged", "passed by", "Kendall's W", "gold")
    for item in Desk(_database(Workspace(root), database)).status():
        agreement = "-" if item.agreement is None else f"{item.agreement:.2f}"
        table.add_row(str(item.item), escape(item.question[:60]), str(item.judged), str(item.skipped), agreement,
                      "yes" if item.gold else "")  # fmt: skip
    Console().print(table)

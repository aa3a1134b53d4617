"""``nestling workspace``: what it holds and takes, and what can go."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from nestling.cli.common import workspace_option
from nestling.workspace import Workspace
from nestling.workspace.housekeeping import ABOUT, CLEANED, Part, clean, parts


@click.group()
def workspace() -> None:
    """Show what a workspace takes, and clean it.

    A workspace is one folder, and nothing in it says where it lies: while nothing runs in it, move or copy it as any
    other. An older release's is brought up to date when it is opened.
    """


@workspace.command()
@workspace_option
def show(root: str | None) -> None:
    """What is in the workspace and how much it takes."""
    opened = Workspace(root)
    found = parts(opened)
    table = Table("part", "what it is", "MiB", "clean", title=str(opened.root))
    table.columns[2].justify = "right"
    for part in found:
        goes = "yes" if part.kind in CLEANED else "--bases" if part.kind == "bases" else ""
        table.add_row(str(part.path.relative_to(opened.root)), ABOUT[part.kind], _mib([part]), goes)
    Console().print(table)
    click.echo(f"{_mib(found)} MiB in all. Versions: `nestling versions remove NAME`.")


@workspace.command("clean")
@click.option(
    "--bases", is_flag=True, help="Also the downloaded base models: getting them again takes a network."
)
@workspace_option
def clean_(bases: bool, root: str | None) -> None:
    """Remove what is made again when it is asked for: kept answers, benchmarks' models, what killed processes left."""
    gone = clean(Workspace(root), bases)
    for part in gone:
        click.echo(f"{part.path}: {_mib([part])} MiB")
    click.echo(f"{_mib(gone)} MiB removed.")


def _mib(some: list[Part]) -> str:
    return f"{sum(part.bytes for part in some) / 2**20:,.1f}"

"""``nestling people``: accounts, how far raters agree, and forgetting what somebody said."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import select

from nestling.cli.common import workspace_option
from nestling.feedback.agreement import krippendorff_alpha, pair_units, raters
from nestling.feedback.opinions import opinions
from nestling.feedback.people import Accounts, Person
from nestling.feedback.recorder import Recorder
from nestling.feedback.snapshot import erase_withdrawn
from nestling.storage import ChatSession, open_database
from nestling.workspace import Workspace


@click.group()
def people() -> None:
    """Accounts of people who judge, how far they agree, and what they want forgotten."""


@people.command()
@click.argument("name")
@workspace_option
def add(name: str, root: str | None) -> None:
    """Make an account; its token is shown this once and kept nowhere."""
    token = Accounts(Workspace(root)).add(name)
    click.echo(f"{name} may log in with this token, which is shown this once:\n{token}")


@people.command()
@click.argument("name")
@workspace_option
def remove(name: str, root: str | None) -> None:
    """Take an account's token away; what was said by it stays (`people forget` takes that back)."""
    Accounts(Workspace(root)).remove(name)
    click.echo(f"{name} can no longer log in.")


@people.command("list")
@click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")
@workspace_option
def list_(database: str | None, root: str | None) -> None:
    """Who has judged, how much, and how far they can be relied on."""
    workspace = Workspace(root)
    opened = open_database(database or workspace.database_path, create=False)
    given = list(opinions(opened))
    table = Table("person", "pairs", "gold right", "agrees with others", "first one better", "counts")
    share = lambda right, count: f"{right / count:.0%} of {count}" if count else "-"
    for rater in raters(given):
        side = "-" if rater.first_share is None else f"{rater.first_share:.0%}"
        table.add_row(
            escape(rater.person), str(rater.opinions),
            share(rater.gold_right, rater.gold), share(rater.agreed, rater.shared),
            side, f"{rater.weight:.2f}",
        )  # fmt: skip
    with opened.read() as session:
        others = set(session.scalars(select(ChatSession.id))) | {
            Person.account(name).id for name in Accounts(workspace).names()
        }
    for person in sorted(others - {rater.person for rater in raters(given)}):
        table.add_row(escape(person), "0", "-", "-", "-", "-")  # accounts, and who asks or gives thumbs only
    Console().print(table)
    alpha = krippendorff_alpha(pair_units(given), ordinal=True)
    click.echo(
        "No pair was judged by two people." if alpha is None else f"Krippendorff's alpha over pairs: {alpha:.2f} "
        "(1: all agree, 0: as chance would have it)."
    )  # fmt: skip


@people.command()
@click.argument("person")
@click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")
@click.confirmation_option(prompt="This cannot be undone. Take back all that this person has said?")
@workspace_option
def forget(person: str, database: str | None, root: str | None) -> None:
    """Take back for good all that PERSON (an id of `people list`) has said: no later version learns from it.

    It also goes out of the snapshots of earlier versions, which can then no longer be replayed.
    """
    workspace = Workspace(root)
    opened = open_database(database or workspace.database_path, create=False)
    count = Recorder(opened).withdraw_person(Person(person, "claimed"))
    touched = erase_withdrawn(opened, workspace.root / "snapshots")
    click.echo(f"{count} judgments of {person} are taken back, out of {len(touched)} snapshots.")

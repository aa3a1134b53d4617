"""``nestling data``: the starter data, what is wrong with a file, the file in our shape, which tokens are trained."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nestling.cli.common import find_version, workspace_option
from nestling.data import curriculum
from nestling.data.formats import Conversation, FileReport, check_file, read_rows, write_rows
from nestling.errors import DataError
from nestling.feedback.export import export
from nestling.feedback.imports import FileOfJudgments, Imported, import_judgments, read_judgments
from nestling.storage import open_database
from nestling.text.samples import describe_tokens, training_samples
from nestling.text.tokenizer import Tokenizer
from nestling.workspace import Workspace, atomic


@click.group()
def data() -> None:
    """Look at the starter data, check or convert a file, show what is trained, take people's judgments out and in."""


@data.command()
@click.option("--behaviour", help="Show examples of one behaviour.")
@click.option("--examples", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which.")
def starter(behaviour: str | None, examples: int, seed: int) -> None:
    """What the starter curriculum holds."""
    console, content = Console(), curriculum.load()
    if behaviour is not None:
        for item in curriculum.items("train", seed, [behaviour], examples):
            for message in item.messages:
                console.print(f"[bold]{message['role']}[/] ", end="")
                console.print(message["content"], markup=False)
            for label, answers in (("good", item.answers[:1]), ("worse", item.worse[:1])):
                for answer in answers:
                    console.print(f"[bold]{label} answer[/] ", end="")
                    console.print(answer, markup=False)
            console.print(f"check {item.check}\n", style="dim", markup=False)
        return
    table = Table("behaviour", "about", "templates train/gate/test", "blind", "rows", "held out")
    for name, behaviour_ in content.behaviours.items():
        templates, rows = content.templates[name], content.rows(name)
        counts = " / ".join(str(len(templates[split])) for split in curriculum.SPLITS)
        blind = sum(t.blind for t in templates["test"])
        table.add_row(name, behaviour_.about, counts, str(blind), str(len(rows)) if rows else "-",
                      "yes" if behaviour_.held_out else "")  # fmt: skip
    console.print(table)
    console.print(
        "All of it is generated from hand-written templates and tables; its preferences are programmatic, not human."
    )


def _tell(file: Path, report: FileReport) -> None:
    """Every problem with its line, then what the file holds."""
    for problem in report.problems:
        place = f"{file}:{problem.line}" if problem.line else str(file)
        click.echo(f"{place}: {problem.what} {problem.remedy}")
    shapes = ", ".join(f"{count} as {shape}" for shape, count in report.shapes.items() if shape)
    click.echo(
        f"{report.rows} good rows of kind {report.kind or 'unknown'}{f' ({shapes})' if shapes else ''}, "
        f"{len(report.problems)} problems."
    )


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Read FILE to its end and list every problem by line.

    JSONL, a JSON list, or a table (.csv, .tsv); rows as OpenAI, TRL, ShareGPT and Alpaca write them, or with a question
    and an answer.
    """
    report = check_file(file)
    _tell(file, report)
    sys.exit(1 if report.problems else 0)


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def convert(file: Path, out: Path) -> None:
    """Write the good rows of FILE to OUT (JSONL); every row that is left out is listed with its reason."""
    atomic.refuse_existing(out)
    report = check_file(file)
    _tell(file, report)
    if not report.clean:
        raise DataError(
            "there is no good row to write.", where=str(file), remedy="Mend what is listed above."
        )
    write_rows(out, report.clean)
    click.echo(f"{out}: {len(report.clean)} rows.")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")
@workspace_option
def judgments(folder: Path, database: str | None, root: str | None) -> None:
    """Write what people said of answers to FOLDER as rankings, preferences, feedback and demonstrations (JSONL).

    `nestling reward-model --data FOLDER/rankings.jsonl` learns from rankings, `nestling sft --data
    FOLDER/demonstrations.jsonl` from answers that people wrote; preferences.jsonl (DPO) and feedback.jsonl (KTO) are
    for other trainers. Files that are there already are never written over.
    """
    opened = open_database(database or Workspace(root).database_path, create=False)
    for name, count in export(opened, folder).items():
        click.echo(f"{folder / name}: {count} rows")


@data.command("import")
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True)
@click.option("--leave-out", is_flag=True, help="List rows that are wrong and go on without them.")
@click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")
@workspace_option
def import_(files: tuple[Path, ...], leave_out: bool, database: str | None, root: str | None) -> None:
    """Take in judgments that were made elsewhere: all that FILES say, or nothing where a row is wrong.

    Preferences, labels and conversations as TRL and OpenAI write them, what `nestling data judgments` writes (one of
    the forms, not several), and Open WebUI's export of feedback. Later versions learn from them; whether people are
    content with a version of yours they do not tell. The same file a second time adds nothing.
    """
    read = [read_judgments(file) for file in files]
    problems = [problem for file in read for problem in file.problems]
    if problems and not leave_out:
        more = (
            f" There are {len(problems) - 1} more; --leave-out lists and leaves them out."
            if problems[1:]
            else ""
        )
        raise DataError(problems[0].what, where=problems[0].where, remedy=f"{problems[0].remedy or ''}{more}")
    for problem in problems:
        click.echo(str(problem))
    opened = open_database(database or Workspace(root).database_path)
    for file, done in zip(read, import_judgments(opened, read), strict=True):
        _tell_import(file, done)


def _tell_import(file: FileOfJudgments, done: Imported) -> None:
    if done.before is not None:
        click.echo(f"{file.path}: imported on {done.before} already; nothing is new.")
        return
    kinds = ", ".join(
        f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in sorted(done.new.items())
    )
    click.echo(
        f"{file.path}: {kinds or 'nothing'} new, {done.known} here already, {len(file.problems)} wrong."
    )
    for lack, count in file.left_out.items():
        click.echo(f"{file.path}: {count} left out: {lack}.")


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--row", type=click.IntRange(1), default=1, show_default=True, help="Which conversation, from 1."
)
@click.option("--version", "name", help="Whose tokenizer and template.  [default: the served one]")
@workspace_option
def show(file: Path, row: int, name: str | None, root: str | None) -> None:
    """A conversation of FILE token by token; trained tokens are marked."""
    tokenizer = Tokenizer.load(find_version(Workspace(root), name).folder)
    found = next((c for n, c in enumerate(read_rows(file, Conversation), 1) if n == row), None)
    if found is None:
        raise DataError(
            f"there is no row {row}.",
            where=str(file),
            remedy="Rows are counted from 1; `nestling data check` says how many there are.",
        )
    console = Console()
    for sample in training_samples(tokenizer, found.messages, f"{file}:{row}"):
        text = Text()
        for token, trained in describe_tokens(tokenizer, sample):
            shown = token.replace("\n", "⏎\n")
            text.append(f"[{shown}]" if trained else shown, style="bold green" if trained else "dim")
        console.print(text)
        console.print(
            f"{sum(sample.loss_mask)} of {len(sample.ids)} tokens are trained, in [brackets].", markup=False
        )

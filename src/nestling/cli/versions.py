"""``nestling versions``, ``export`` and ``doctor``."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

from nestling.cli.common import find_version, workspace_option
from nestling.errors import ConfigError, WorkspaceError
from nestling.workspace import Workspace, atomic


@click.group()
def versions() -> None:
    """List, show, promote, roll back and remove versions."""


@versions.command("list")
@workspace_option
def list_(root: str | None) -> None:
    """All versions, the served one marked."""
    store = Workspace(root).versions
    pointer = store.pointer()
    table, remarks = Table("", "version", "kind", "parents", "state", "made"), []
    table.columns[1].no_wrap = True
    for name in store.names():
        mark = "→" if pointer and pointer.version == name else ""
        try:
            card = store.get(name).card
        except WorkspaceError as error:  # the others are there all the same
            table.add_row(mark, name, "", "", "damaged", "")
            remarks.append(f"{name}: {error}")
            continue
        made = card.created.replace("T", " ")[5:16]
        state = "removed" if card.removed else card.state
        table.add_row(mark, name, card.kind, ", ".join(card.parents), state, made)
        if card.verdict:  # a column of sentences would be a few letters wide
            remarks.append(f"{name}: {card.verdict}")
    Console().print(table)
    for remark in remarks:
        click.echo(remark)


@versions.command()
@click.argument("name", required=False)
@workspace_option
def show(name: str | None, root: str | None) -> None:
    """A version's card."""
    opened = Workspace(root)
    found = opened.versions.get(name) if name else find_version(opened, None)
    Console().print_json(found.card.model_dump_json())


@versions.command("lineage")
@click.argument("name", required=False)
@workspace_option
def lineage_(name: str | None, root: str | None) -> None:
    """Where a version comes from, down to the judgments; whether it can be trained again from them."""
    from nestling.workflow.lineage import lineage, told

    workspace = Workspace(root)
    found = workspace.versions.get(name) if name else find_version(workspace, None)
    table = Table("version", "kind", "state", "snapshot", "judgments", "replayable")
    for line in told(lineage(workspace, found)):
        judgments = ", ".join(f"{count} {part}" for part, count in (line["judgments"] or {}).items())
        again = {None: "-", True: "yes", False: "no: some were taken back"}[line["replayable"]]
        table.add_row(
            line["version"], line["kind"], line["state"], line["snapshot"] or "-", judgments or "-", again
        )
    Console().print(table)


@versions.command()
@click.argument("name")
@workspace_option
def remove(name: str, root: str | None) -> None:
    """Delete a version's weights for good; its card stays, as others descend from it."""
    click.echo(f"The weights of {Workspace(root).versions.remove(name).name} are gone; its card stays.")


@versions.command()
@click.argument("name")
@click.option("--reason", default="promoted by hand", show_default=True, help="Why; kept in the history.")
@click.option("--force", is_flag=True, help="Even if the gate rejected it.")
@workspace_option
def promote(name: str, reason: str, force: bool, root: str | None) -> None:
    """Serve a version; a running server follows at once."""
    Workspace(root).versions.promote(name, reason, force)
    click.echo(f"{name} is now served.")


@versions.command("rollback")
@click.option("--reason", default="rolled back by hand", show_default=True, help="Why; kept in the history.")
@workspace_option
def roll_back(reason: str, root: str | None) -> None:
    """Serve the version that was served before."""
    click.echo(f"{Workspace(root).versions.roll_back(reason).name} is served again.")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--version", "name", help="Which version.  [default: the served one]")
@click.option(
    "--gguf",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    help="Number format of a .gguf file.  [default: f16]",
)
@workspace_option
def export(out: Path, name: str | None, gguf: str | None, root: str | None) -> None:
    """Write a version to OUT: a GGUF file when OUT ends in .gguf, else a Hugging Face folder."""
    is_gguf = out.suffix.lower() == ".gguf"
    found = find_version(Workspace(root), name, answers=is_gguf)
    if is_gguf:
        from nestling.model.gguf_writer import export_gguf

        atomic.refuse_existing(out)
        export_gguf(found.folder, out, gguf or "f16", f"{found.card.assistant} {found.name}")
    elif gguf:
        raise ConfigError(
            "--gguf needs an OUT that ends in .gguf.", where=str(out), remedy="Name it so, such as mine.gguf."
        )
    else:
        with atomic.new_folder(out) as folder:
            shutil.copytree(found.folder, folder, dirs_exist_ok=True)
    click.echo(f"{found.name} -> {out}")


@click.command()
@workspace_option
def doctor(root: str | None) -> None:
    """Say what this machine can do and what is missing."""
    from nestling.compute.device import detect, matrix_rates

    workspace, table = Workspace(root), Table("what", "found", show_header=False)
    hardware = detect()
    parent = next(p for p in (workspace.root, *workspace.root.parents) if p.exists())
    memory = psutil.virtual_memory()
    rows = {
        "python": f"{sys.version.split()[0]} on {platform.system()} {platform.machine()}",
        "device": f"{hardware.device}, {hardware.threads} threads",
        "matrix products": ", ".join(
            f"{d} {rate / 1e9:.0f} GFLOP/s" for d, rate in matrix_rates(hardware.device).items()
        )
        + f"; computing in {hardware.dtype}",
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        "disk": f"{shutil.disk_usage(parent).free / 2**30:.1f} GiB free at {parent}",
        "workspace": f"{workspace.root} ({len(workspace.versions.names())} versions)",
    }
    for package in (
        "torch",
        "numpy",
        "tokenizers",
        "safetensors",
        "gguf",
        "fastapi",
        "sqlalchemy",
        "huggingface_hub",
    ):
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed" + (
                " (only needed for hub ids)" if package == "huggingface_hub" else ""
            )
    for what, found in rows.items():
        table.add_row(what, found)
    Console().print(table)

"""What several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nestling.compute.device import Hardware
from nestling.errors import WorkspaceError
from nestling.workflow.recipe import HardwareConfig
from nestling.workspace import Version, Workspace

F = TypeVar("F", bound=Callable[..., Any])

workspace_option = click.option(
    "--workspace",
    "-w",
    "root",
    metavar="FOLDER",
    help="Where versions live.  [default: $NESTLING_HOME or ./nest]",
)


def hardware_options(command: F) -> F:
    """--dtype and --threads."""
    command = click.option(
        "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 takes every physical core."
    )(command)
    return click.option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
        help="Number format; auto measures which is faster.",
    )(command)  # fmt: skip


def choose_hardware(dtype: str, threads: int) -> Hardware:
    return HardwareConfig.model_validate({"dtype": dtype, "threads": threads}).detect().apply()


def find_version(workspace: Workspace, name: str | None, answers: bool = False) -> Version:
    """A version by name; the served one when no name is given.

    Raises:
        WorkspaceError: there is none, or with ``answers`` it is a reward model.
    """
    if name:
        return workspace.versions.that_answers(name) if answers else workspace.versions.with_weights(name)
    serving = workspace.versions.serving()
    if serving is None:
        raise WorkspaceError(
            "there is no version yet.",
            where=str(workspace.root),
            remedy="Run `nestling fetch` or `nestling up`.",
        )
    return serving

"""``nestling serve`` and ``nestling chat``."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

import click
from rich.console import Console

from nestling.cli.common import choose_hardware, find_version, hardware_options, workspace_option
from nestling.cli.options import from_config, to_config
from nestling.errors import RequestError
from nestling.generation.engine import Engine
from nestling.generation.protocol import Request, Sampling
from nestling.model.hf_folder import load_model
from nestling.rewards.predictor import Predictor, judge_by
from nestling.serving.app import create_app
from nestling.serving.run import serve as serve_app
from nestling.serving.settings import ServerSettings, hash_token
from nestling.serving.worker import Chooser
from nestling.storage import open_database
from nestling.supervisor import exit_with_parent
from nestling.text.messages import Message
from nestling.workflow.progress import ProgressReader
from nestling.workflow.stages import best_of, choosing
from nestling.workspace import Version, Workspace


@click.command()
@from_config(ServerSettings, "token_hash", recipe=False)
@click.option(
    "--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Answers generated at a time."
)
@click.option(
    "--context",
    type=click.IntRange(64),
    default=2048,
    show_default=True,
    help="Longest conversation, tokens.",
)
@click.option("--database", help="Path or URL of the judgments.  [default: the workspace's]")
@hardware_options
@workspace_option
def serve(max_batch: int, context: int, database: str | None, dtype: str, threads: int, root: str | None,
          **options: Any) -> None:  # fmt: skip
    """Serve the API and the web page.

    Beyond this machine (--host 0.0.0.0, say) a token is required: set NESTLING_TOKEN.
    """
    exit_with_parent()
    workspace, hardware = Workspace(root), choose_hardware(dtype, threads)
    token = os.environ.get("NESTLING_TOKEN")
    given = ServerSettings(token_hash=hash_token(token)) if token else None
    settings: ServerSettings = to_config(ServerSettings, options, given)

    def load_engine(version: Version) -> Engine | tuple[Engine, Chooser]:
        model = load_model(version.folder, hardware.torch_dtype, hardware.device)
        engine = Engine(model, max_batch=max_batch, context_length=context, frozen=True)
        if (predictor := Predictor.load(version.folder)) is None:
            return engine
        return engine, Chooser(judge_by(predictor, model.decoder), best_of(version))

    open_database(
        database or workspace.database_path
    ).close()  # a damaged or newer one is named before we listen
    progress = ProgressReader(workspace)
    app = create_app(workspace, load_engine, settings, progress, progress.curves, database)
    serve_app(app, settings, lambda url: click.echo(f"Listening on {url}"))


@click.command()
@click.option("--version", "name", help="Which version.  [default: the served one]")
@click.option("--system", help="System prompt.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0 is greedy."
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True, help="1 is off."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer in tokens."
)
@click.option("--seed", type=click.IntRange(0), help="Makes the answers repeatable.")
@hardware_options
@workspace_option
def chat(name: str | None, system: str | None, temperature: float, top_p: float, max_tokens: int, seed: int | None,
         dtype: str, threads: int, root: str | None) -> None:  # fmt: skip
    """Chat in the terminal. /new begins again, /quit ends."""
    hardware, console = choose_hardware(dtype, threads), Console()
    version = find_version(Workspace(root), name, answers=True)
    model = load_model(version.folder, hardware.torch_dtype, hardware.device)
    engine = Engine(model, frozen=True)
    answering = choosing(engine, version, model)
    console.print(f"{version.card.assistant} ({version.name}). /new begins again, /quit ends.", style="dim")
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while True:
        try:
            text = console.input("[bold cyan]you[/] ")
        except (EOFError, KeyboardInterrupt):
            return
        if text.strip() in ("/quit", "/new", ""):
            if text.strip() == "/quit":
                return
            messages = list(start) if text.strip() == "/new" else messages
            continue
        messages.append({"role": "user", "content": text})
        number = secrets.randbits(48) if seed is None else seed + len(messages)
        room = engine.context_length - len(engine.tokenizer.render_prompt(messages))
        sampling = Sampling(temperature, top_p=top_p, max_tokens=max(1, min(max_tokens, room)), seed=number)
        answer = ""
        try:
            for chunk in answering.stream(Request(messages, sampling)):
                answer += chunk.text
                console.print(chunk.text, end="", markup=False, highlight=False)
        except KeyboardInterrupt:
            console.print(" ...", style="dim", end="" if answer else "\n")
            if not answer:  # the question was not asked
                messages.pop()
                continue
        except RequestError as error:
            console.print(f"{error} /new begins again.", style="yellow", markup=False, highlight=False)
            messages.pop()
            continue
        console.print()
        messages.append({"role": "assistant", "content": answer})

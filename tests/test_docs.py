"""The examples of the documentation run as they are written, on a small model."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nestling.cli import COMMANDS, cli
from nestling.data import curriculum
from nestling.data.curriculum import SPLITS, split_of
from nestling.evaluation.suite import build_suite
from nestling.model.hf_folder import save_model
from nestling.workflow.recipe import load_recipe
from nestling.workspace import Workspace
from serving_support import publish, running
from test_workflow import SETTINGS
from tiny import tiny_model

DOCS = Path(__file__).parent.parent / "docs"
# The server of the page serves until it is told to stop: tell it as soon as it answers.
SERVE = "serve(app, settings, print)"
SERVE_AND_STOP = """
import httpx, signal, threading, time
def stop():
    while True:
        try:
            httpx.get("http://127.0.0.1:{port}/v1/models")
            return signal.raise_signal(signal.SIGINT)
        except httpx.ConnectError:
            time.sleep(0.1)
threading.Thread(target=stop).start()
try:
    serve(app, settings, print)
except KeyboardInterrupt:
    pass
"""


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_every_example_of_the_python_page_runs(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_model(base, tiny_model(context_length=2048))
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({"name": "tiny", "base": str(base), **SETTINGS}))
    workspace = Workspace(tmp_path / "other")
    workspace.versions.promote(publish(workspace, ["Paris", " it", " is."]).name, "for the page's endpoint")
    port = free_port()
    with running(workspace) as other:
        other.wait()
        smaller = {  # what makes an example long or needs the network, and what stands for it here
            '"smollm2-135m-instruct"': repr(str(base)),
            'load_recipe("quickstart", ["sft.epochs=1", "data.replay=100"])': f"load_recipe({str(recipe)!r})",
            'EvaluationConfig(max_new_tokens=96, sizes={"refusal": 50})': "recipe.evaluation",
            "http://127.0.0.1:8000/v1": f"{other.url}/v1",
            "port=8000": f"port={port}",
            "iterations=20": "iterations=2",
            SERVE: SERVE_AND_STOP.format(port=port),
        }
        text = (DOCS / "python_api.md").read_text()
        for old, new in smaller.items():
            assert old in text, f"the page no longer says {old}"
            text = text.replace(old, new)
        script = tmp_path / "page.py"
        script.write_text("\n".join(python_blocks(text)))
        environment = {k: v for k, v in os.environ.items() if k != "NESTLING_HOME"}
        command = [sys.executable, str(script)]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "nestling.gguf").exists()
    assert (tmp_path / "feedback").is_dir()


def test_the_data_card_counts_what_the_quickstart_uses() -> None:
    content, recipe = curriculum.load(), load_recipe("quickstart")
    suites = {split: build_suite(split).items for split in ("gate", "test")}
    demonstrated = recipe.data.demonstrations
    made = {name: len(curriculum.demonstrations(recipe.seed, {name: n})) for name, n in demonstrated.items()}
    used = (made, recipe.rank.prompts, recipe.ppo_prompts)
    card = (DOCS / "data_card.md").read_text()
    for name in content.behaviours:
        templates, rows = content.templates[name], content.rows(name) or ()
        counts = [sum(split_of(row.key) == split for row in rows) for split in SPLITS]
        entities = [len({row.key for row in rows if split_of(row.key) == split}) for split in SPLITS]
        told = "same" if counts == entities else " / ".join(map(str, entities))
        asked = {split: [i for i in items if i.behaviour == name] for split, items in suites.items()}
        line = [
            f"`{name}`",
            " / ".join(str(len(templates[split])) for split in SPLITS),
            str(sum(template.blind for template in templates["test"])),
            " / ".join(map(str, counts)) if rows else "-",
            told if rows else "-",
            *(str(kind.get(name, "-")) for kind in used),
            str(len(asked["gate"])),
            f"{len(asked['test'])} ({sum(item.blind for item in asked['test'])})",
        ]  # fmt: skip
        assert f"| {' | '.join(line)} |" in card
    sums = " | ".join(f"**{sum(kind.values()):,}**" for kind in used)
    assert f"| {sums} | **{len(suites['gate']):,}** | **{len(suites['test']):,} (" in card


def test_every_verb_has_a_page_and_the_index_names_them_in_order() -> None:
    pages = {path.stem for path in (DOCS / "verbs").glob("*.md")} - {"README"}
    assert pages == set(COMMANDS)
    named = re.findall(r"\]\(([a-z-]+)\.md\)", (DOCS / "verbs" / "README.md").read_text())
    assert list(dict.fromkeys(named)) == list(COMMANDS)


def test_options_that_pages_name_are_there() -> None:
    known = {
        option
        for command in _all_commands(cli)
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for path in [
        *(DOCS / "verbs").glob("*.md"),
        *(DOCS / "concepts").glob("*.md"),
        DOCS / "troubleshooting.md",
    ]:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?:\.[a-z_]+)*", path.read_text())) - {
            "--help",
            "--version",
        }
        assert named - known <= OF_OTHERS, path.name


OF_OTHERS = {"--data-binary", "--extra-index-url", "--fail", "--silent", "--pyargs"}
"""Options of other programs that pages name: curl's, pip's."""


def _all_commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _all_commands(found)


def test_links_between_pages_lead_somewhere() -> None:
    for path in [DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text("utf-8")):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name}: {link}"

"""The examples of the documentation run as they are written, on a small model."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nestling.model.hf_folder import save_model
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

"""Any OpenAI-compatible server as a generator, tried on our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from nestling.cli import cli
from nestling.errors import EndpointError
from nestling.generation.endpoint import Endpoint
from nestling.generation.engine import Engine
from nestling.generation.protocol import Request, Sampling
from nestling.model.hf_folder import load_model, save_model
from nestling.workspace import Card, Workspace
from serving_support import LiveServer, running
from tiny import tiny_model


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    workspace = Workspace(tmp_path_factory.mktemp("nest"))
    card, model = Card(kind="base", assistant="Nestling"), tiny_model(context_length=2048)
    made = workspace.versions.publish(lambda folder: save_model(folder, model), card)
    workspace.versions.promote(made.name, "for the test")
    with running(workspace) as server:
        yield server.wait()


def test_an_endpoint_answers_as_the_engine_behind_it(live: LiveServer) -> None:
    requests = [
        Request([{"role": "user", "content": text}], Sampling(temperature=t, max_tokens=12, seed=3))
        for text, t in (("say red", 0.0), ("say blue", 0.0), ("tell me more", 0.8))
    ]
    there = Endpoint(f"{live.url}/v1", "nestling")
    version = live.workspace.versions.serving()
    assert version is not None
    here = Engine(load_model(version.folder, torch.float32))
    for request, one, other in zip(requests, there.generate(requests), here.generate(requests), strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        *pieces, last = there.stream(request)
        assert "".join(piece.text for piece in [*pieces, last]) == other.text
        assert last.completion is not None and last.completion.finish_reason == other.finish_reason


def test_evaluate_measures_a_server_by_its_address(live: LiveServer, tmp_path: Path) -> None:
    words = ["evaluate", "--endpoint", f"{live.url}/v1", "--model", "nestling", "--split", "gate"]
    words += ["--prompts", "2", "--max-new-tokens", "4", "--json", str(tmp_path / "e.json")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0 and "nestling" in done.output, done.output
    [measured] = json.loads((tmp_path / "e.json").read_text())
    assert measured["figures"]["refusal"]["n"] == 2 and measured["perplexity"] is None
    assert {"messages", "answer", "passed"} <= measured["rows"][0].keys()


@pytest.mark.parametrize(
    ("url", "model", "message"),
    [("http://127.0.0.1:9/v1", "nestling", "127.0.0.1:9"), ("{live}/v1", "v9-none", "v9-none")],
)
def test_a_server_that_does_not_answer_is_named(live: LiveServer, url: str, model: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        there = Endpoint(url.format(live=live.url), model)
        there.generate([Request([{"role": "user", "content": "Hi"}], Sampling(max_tokens=2))])

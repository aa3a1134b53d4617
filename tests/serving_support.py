"""Small real models whose answers are known, and live servers to talk to.

A talking model is a one-layer network whose weights are set by hand: attention and MLP add nothing, the
embedding is one-hot, and the output layer maps each token to the one that follows it. It runs in the real
engine and says a given text, so tests can know the answer without a mock.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import tokenizers
import torch
from fastapi import FastAPI
from tokenizers import decoders, models, pre_tokenizers

from nestling.errors import ModelError
from nestling.generation.engine import Engine
from nestling.model.config import ModelConfig
from nestling.model.decoder import Decoder
from nestling.model.hf_folder import LoadedModel, load_model, save_model
from nestling.serving import Server, ServerSettings, create_app, serve
from nestling.text.tokenizer import Tokenizer
from nestling.workflow.progress import ProgressReader
from nestling.workspace import Card, Version, Workspace

Pieces = Sequence[str | tuple[str, ...]]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talking_model(pieces: Pieces, loop: bool = False, context_length: int = 100_000) -> LoadedModel:
    """A model that answers everything with ``pieces``, one a token; of a tuple it says one at random.

    With ``loop`` it begins again instead of ending. Every piece must be different.
    """
    groups = [piece if isinstance(piece, tuple) else (piece,) for piece in pieces]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([tokenizers.AddedToken(p, normalized=False) for group in groups for p in group])
    tokenizer = Tokenizer(backend, TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>")
    size = backend.get_vocab_size()
    config = ModelConfig(
        family="llama",
        vocab_size=size,
        hidden_size=size,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=4,
        context_length=context_length,
        tie_embeddings=False,
    )
    decoder = Decoder(config).eval()
    ids = [[backend.token_to_id(piece) for piece in group] for group in groups]
    start, end = backend.token_to_id("Ċ"), backend.token_to_id("<|im_end|>")
    steps = [[start], *ids, ids[0] if loop else [end]]
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.model.embed_tokens.weight.copy_(torch.eye(size))
        decoder.model.norm.weight.fill_(1)
        for now, after in itertools.pairwise(steps):
            for token in now:
                decoder.lm_head.weight[after, token] = 5.0
    return LoadedModel(decoder, tokenizer)


def publish(workspace: Workspace, pieces: Pieces, kind: str = "sft", **options: object) -> Version:
    """Publish a talking model as a version of ``workspace``."""
    model = talking_model(pieces, **options)  # type: ignore[arg-type]
    return workspace.versions.publish(lambda folder: save_model(folder, model), Card(kind=kind))


def load_engine(version: Version) -> Engine:
    """What the servers below load versions with.

    A folder with a file "broken" cannot be loaded; one with a file "fragile" breaks when it is used.
    """
    if (version.folder / "broken").exists():
        raise ModelError("this model is broken on purpose.", where=str(version.folder))
    model = load_model(version.folder, torch.float32)
    if (version.folder / "fragile").exists():
        model.decoder.lm_head.weight = torch.nn.Parameter(torch.zeros(3, 3))
    return Engine(model, max_batch=4)


def make_app(workspace: Workspace, settings: ServerSettings) -> FastAPI:
    """The app of both kinds of server below. Its progress is what ``progress.json`` says, or else the newest run."""
    torch.set_num_threads(1)
    path = workspace.root / "progress.json"

    reader = ProgressReader(workspace)

    def progress() -> dict[str, Any] | None:
        return json.loads(path.read_text()) if path.exists() else reader()

    return create_app(workspace, load_engine, settings, progress, reader.curves)


class LiveServer:
    """A server that listens on loopback."""

    def __init__(self, workspace: Workspace, url: str) -> None:
        self.workspace, self.url = workspace, url

    def client(self, **options: object) -> httpx.Client:
        """An HTTP client for this server."""
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]

    def wait(self, version: str | None = None) -> LiveServer:
        """Wait until a version (or this one) is served."""

        def is_served() -> bool:
            serving = self.status()["serving"]
            return bool(serving and version in (None, serving["name"]))

        wait_until(is_served)
        return self

    def status(self) -> dict[str, Any]:
        """What ``/api/status`` says."""
        with self.client() as client:
            return client.get("/api/status").raise_for_status().json()


@contextlib.contextmanager
def running(workspace: Workspace, **settings: object) -> Iterator[LiveServer]:
    """A live server in a thread, for the length of the block."""
    chosen = ServerSettings(port=0, **settings)  # type: ignore[arg-type]
    server = Server(make_app(workspace, chosen), chosen)
    thread = threading.Thread(target=server.answer)
    thread.start()
    try:
        yield LiveServer(workspace, server.url)
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def running_process(workspace: Workspace) -> Iterator[tuple[LiveServer, subprocess.Popen[str]]]:
    """A live server in a process of its own, for tests that kill it."""
    arguments = [sys.executable, __file__, str(workspace.root)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        try:
            yield LiveServer(workspace, url), process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until ``condition`` holds; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ask(text: str = "Hi") -> list[dict[str, str]]:
    """Messages of one user turn."""
    return [{"role": "user", "content": text}]


if __name__ == "__main__":
    _settings = ServerSettings(port=0)
    serve(make_app(Workspace(sys.argv[1]), _settings), _settings, lambda url: print(url, flush=True))

"""Asking: greedy answers in fixed chunks, each kept on disk as soon as it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nestling.checks import Answer
from nestling.data.curriculum import Item
from nestling.errors import ModelError
from nestling.generation.protocol import Generator, Request, Sampling, nothing
from nestling.workspace import Tick, atomic, counting

GREEDY = Sampling(temperature=0.0, max_tokens=96)
CHUNK = 1024
"""Prompts asked in one go. Towards the end of each, ever fewer answers are left to compute side by side: the gate's
prompts took 64 s in one go and 97 s behaviour by behaviour (six behaviours, means of base and fine-tuned model)."""

_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.jinja",
    "*.safetensors*",
)


def ask(
    generator: Generator,
    items: Sequence[Item],
    *,
    identity: str,
    cache: Path,
    sampling: Sampling = GREEDY,
    progress: Tick | None = None,
) -> list[Answer]:
    """Answer every item, in order.

    A chunk is generated as one call, so that an evaluation which was killed and resumed answers in the same
    batches, and to the same words, as one that was not. Its answers are kept under the SHA-256 of identity, sampling
    and prompts: they come back even when checks change.

    Args:
        identity: names everything that decides the answers: weights, tokenizer, and the dtype and threads
            they are computed with. See ``folder_identity``.
        cache: folder of the kept chunks.
        progress: called with (answered, all) now and then.

    Raises:
        RequestError: a prompt does not fit the model's context.
        EndpointError: the endpoint failed.
    """
    answers: list[Answer] = []
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        # Counted up when the arithmetic changes: other last bits are other words.
        key = ["answers 2", identity, asdict(sampling), [list(item.messages) for item in chunk]]
        answered = counting(progress, start, len(items)) if progress else nothing
        kept = remembered(cache, key, partial(_generate, generator, chunk, sampling, answered))
        answers += [Answer(i.messages, k["text"], k["finished"]) for i, k in zip(chunk, kept, strict=True)]
        if progress:
            progress(len(answers), len(items))
    return answers


def _generate(
    generator: Generator, chunk: Sequence[Item], sampling: Sampling, answered: Callable[[], object]
) -> list[dict[str, Any]]:
    completions = generator.generate([Request(item.messages, sampling) for item in chunk], answered)
    return [{"text": c.text, "finished": c.finished} for c in completions]


def remembered(cache: Path, key: Any, compute: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The value kept in the folder ``cache`` under ``key`` (any JSON), or else computed and kept."""
    name = hashlib.sha256(json.dumps(key, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    path = cache / name[:2] / f"{name}.json"
    if path.exists():
        kept: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    value = compute()
    atomic.write_json(path, value)
    return value


def folder_identity(path: Path | str) -> str:
    """SHA-256 over names and contents of a model's files: config, weights and tokenizer, or one GGUF file.

    Raises:
        ModelError: there is no model at ``path``.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted({f for pattern in _MODEL_FILES for f in path.glob(pattern)})
    if not files:
        raise ModelError(
            "there is no model here.", where=str(path), remedy="Point at a model folder or GGUF file."
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{content}  {'' if file == path else file.name}\n".encode())
    return digest.hexdigest()

"""What every contender gets: the same weights on disk, the same token ids, the same lengths."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nestling.compute.device import Hardware
from nestling.data import curriculum
from nestling.data.packing import pack
from nestling.evaluation.answers import folder_identity
from nestling.evaluation.perplexity import load_passages
from nestling.model.config import ModelConfig
from nestling.model.gguf_writer import export_gguf
from nestling.model.hf_folder import LoadedModel, save_model
from nestling.model.scorer import Scorer, save_scorer
from nestling.text.samples import TokenSample, training_samples
from nestling.text.tokenizer import Tokenizer
from nestling.workflow.fetch import fetch_base
from nestling.workflow.recipe import load_recipe
from nestling.workspace import Workspace, atomic

SEED = 7
PPO_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 16, 32, 64
DECODE_PROMPT, DECODE_TOKENS = 128, 128
STEP_TOKENS, STEPS = 1024, 6
CANDIDATES = 4


@dataclass(frozen=True)
class Material:
    """Folders and token ids of a benchmark; ``common`` is what every setting file holds."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    hardware: Hardware

    @property
    def common(self) -> dict[str, Any]:
        return {
            "model": str(self.folder / "model"), "scorer": str(self.folder / "scorer"), "seed": SEED,
            "threads": self.hardware.threads, "workers": self.hardware.workers, "dtype": self.hardware.dtype,
            "pad_id": self.tokenizer.pad_id, "answer_tokens": ANSWER_TOKENS,
        }  # fmt: skip

    def windows(self, count: int, length: int) -> list[list[int]]:
        """So many pieces of prose of exactly ``length`` tokens."""
        passages = [*load_passages("gate"), *load_passages("test")]
        ids = list(itertools.chain.from_iterable(self.tokenizer.encode(p.text) for p in passages))
        return [[ids[(i * length + j) % len(ids)] for j in range(length)] for i in range(count)]

    def conversations(self) -> list[list[dict[str, Any]]]:
        """Conversations of the starter curriculum, as many to a step as fill about ``STEP_TOKENS``."""
        samples = self._samples(40)
        bins = pack([len(s.ids) for s in samples], STEP_TOKENS)
        return [
            [{"ids": list(samples[i].ids), "mask": list(samples[i].loss_mask)} for i in bin_]
            for bin_ in bins[:STEPS]
        ]

    def rankings(self) -> list[list[dict[str, Any]]]:
        """Rankings of ``CANDIDATES`` answers; a step's have as many tokens as one of fine-tuning, prompts once."""
        samples = [s for s in self._samples(60) if len(s.ids) <= 200]
        split = [s.loss_mask.index(True) for s in samples]
        answers = [list(s.ids[at:]) for s, at in zip(samples, split, strict=True)]
        rows: list[dict[str, Any]] = [
            {
                "prompt": list(s.ids[:at]),
                "completions": [answers[(i + k) % len(answers)] for k in range(CANDIDATES)],
            }
            for i, (s, at) in enumerate(zip(samples, split, strict=True))
        ]
        lengths = [len(row["prompt"]) + sum(map(len, row["completions"])) for row in rows]
        bins = pack(lengths, max(STEP_TOKENS, *lengths))
        return [[rows[i] for i in bin_] for bin_ in bins[:STEPS]]

    def _samples(self, each: int) -> list[TokenSample]:
        counts = dict.fromkeys(load_recipe("quickstart").data.demonstrations, each)
        samples = [
            sample
            for messages in curriculum.demonstrations(SEED, counts)
            for sample in training_samples(self.tokenizer, messages, "demonstration")[-1:]
        ]
        return [s for s in samples if len(s.ids) <= STEP_TOKENS]

    def gguf(self, kind: str, binaries: Path) -> Path:
        """The model for llama.cpp: BF16 as we export it, others as its own ``llama-quantize`` makes them of that."""
        path = self.folder / f"model-{kind}.gguf"
        if not path.exists():
            if kind == "BF16":
                export_gguf(self.folder / "model", path, "bf16")
            else:
                partial = path.with_suffix(".partial")
                words = map(str, (binaries / "llama-quantize", self.gguf("BF16", binaries), partial, kind))
                subprocess.run([*words], check=True, capture_output=True)
                partial.replace(path)
        return path

    def write(self, name: str, more: dict[str, Any]) -> Path:
        """A setting file."""
        path = self.folder / f"{name}.json"
        atomic.write_json(path, self.common | more)
        return path


def prepare(workspace: Workspace, base: str, hardware: Hardware) -> Material:
    """Lay the base and a reward model of full depth (its trunk, a random head) into the workspace's cache, in fp32."""
    found = fetch_base(base, workspace.cache)
    model = found.load("Nestling", torch.float32)
    folder = workspace.cache / "bench" / folder_identity(found.path)[:16]
    lay_down(folder, lambda: model)
    return Material(folder, model.config, model.tokenizer, hardware)


def lay_down(folder: Path, make: Callable[[], LoadedModel]) -> dict[str, str]:
    """Save a model, and a reward model on its trunk, below ``folder`` unless they are there; where they are."""
    places = {"model": folder / "model", "scorer": folder / "scorer"}
    if not places["scorer"].exists():  # written last
        model = make()
        shutil.rmtree(places["model"], ignore_errors=True)
        with atomic.new_folder(places["model"]) as partial:
            save_model(partial, model)
        with atomic.new_folder(places["scorer"]) as partial:
            save_scorer(partial, _random_scorer(model))
    return {name: str(place) for name, place in places.items()}


def _random_scorer(model: LoadedModel) -> Scorer:
    scorer = Scorer(model.decoder, model.tokenizer)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        scorer.head.weight.normal_(0, model.config.hidden_size**-0.5, generator=generator)
    return scorer

"""How fast this machine goes through a model, measured on random weights of its shape by what will train it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers
import torch

from nestling.compute.device import Hardware
from nestling.generation.protocol import Sampling
from nestling.generation.side_by_side import SideBySide
from nestling.model.config import ModelConfig
from nestling.model.decoder import Decoder, initialise
from nestling.model.hf_folder import LoadedModel
from nestling.model.rows import pack_row
from nestling.text.samples import TokenSample
from nestling.text.tokenizer import Tokenizer
from nestling.training.sft import SFT, SFTConfig, sample_loss

TIMED = 70e6
"""Parameters of the largest model that is timed; of a larger one, as many of its blocks, but three at least."""
SAMPLE, SAMPLES = 128, 8  # tokens of a conversation, conversations of a row
STREAMS, PROMPT, WRITTEN = 96, 45, 16


@dataclass(frozen=True)
class Pace:
    """Seconds a token takes all workers together: to train on, to read, and to write as one of many answers."""

    train_token: float
    read_token: float
    write_token: float

    def train(self, tokens: float, share: float = 1.0) -> float:
        """Seconds of forward, backward and update, where ``share`` of the parameters are trained.

        A little less than it takes with frozen blocks: the gradient still passes through the output layer.
        """
        return self.train_token * tokens * (1 + 2 * share) / 3

    def read(self, tokens: float) -> float:
        """Seconds of a forward pass."""
        return self.read_token * tokens

    def answer(self, prompts: float, samples: int, length: int) -> float:
        """Seconds to answer; a prompt is read once for all its answers."""
        return self.read(prompts * PROMPT) + self.write_token * prompts * samples * length


def measured_pace(config: ModelConfig, hardware: Hardware) -> Pace:
    """The pace of the model, or that of its first blocks and what each further one adds to the pace of the first."""
    one = replace(config, num_layers=1)
    block = replace(config, num_layers=2).num_parameters() - one.num_parameters()
    deep = min(config.num_layers, max(3, 1 + int((TIMED - one.num_parameters()) / block)))
    measured = _timed(replace(config, num_layers=deep), hardware)
    if deep == config.num_layers:
        return measured
    first, further = _timed(one, hardware), (config.num_layers - deep) / (deep - 1)

    def whole(name: str) -> float:
        seconds: float = getattr(measured, name)
        return seconds + further * max(0.0, seconds - getattr(first, name))

    return Pace(whole("train_token"), whole("read_token"), whole("write_token"))


def _timed(config: ModelConfig, hardware: Hardware) -> Pace:
    """The pace of a model of random weights."""
    decoder = initialise(Decoder(config).to(hardware.device, hardware.torch_dtype), seed=0)
    workers = hardware.side_by_side()
    ids = torch.randint(
        config.vocab_size, (STREAMS, SAMPLE), generator=torch.Generator().manual_seed(0)
    ).tolist()
    samples = [TokenSample(row, [at >= PROMPT for at in range(SAMPLE)]) for row in ids[:SAMPLES]]
    packed = pack_row(samples, decoder.device)

    def read() -> None:
        with torch.no_grad():
            workers.map(lambda _, row: sample_loss(decoder, row).total.item(), [packed] * workers.count)

    writing = _seconds_to_write(
        LoadedModel(decoder.requires_grad_(False), _some_tokenizer(config)), hardware, ids
    )
    reading = _seconds(read) / workers.count
    decoder.requires_grad_(True)
    with tempfile.TemporaryDirectory() as scratch:
        size = SAMPLE * SAMPLES
        settings = SFTConfig(row_tokens=size, batch_tokens=size, max_tokens=size, learning_rate=1e-6)
        stage = SFT(decoder, samples, samples[:1], settings, Path(scratch), workers)
        training = _seconds(lambda: stage.update(stage.plan[0], 1.0))
    return Pace(training / size, reading / size, writing / (STREAMS * WRITTEN))


def _seconds_to_write(model: LoadedModel, hardware: Hardware, ids: list[list[int]]) -> float:
    """What ``WRITTEN`` more tokens of every answer take."""
    engine = SideBySide(model, hardware.side_by_side(), max_batch=STREAMS)
    prompts = [row[:PROMPT] for row in ids]

    def answer(tokens: int) -> None:
        engine.generate_ids(prompts, [Sampling(temperature=1.0, max_tokens=tokens, seed=0)] * STREAMS)

    return max(_seconds(lambda: answer(1 + WRITTEN)) - _seconds(lambda: answer(1)), 1e-9)


def _some_tokenizer(config: ModelConfig) -> Tokenizer:
    """A word for every id, and no token that ends an answer."""
    words = {f"w{number}": number for number in range(config.vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer = Tokenizer(backend, eos="w1", pad="w2")
    tokenizer.eos_ids = frozenset()
    return tokenizer


def _seconds(work: Callable[[], object]) -> float:
    """The faster of two turns, after one in which kernels are chosen."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])

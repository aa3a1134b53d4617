"""What a recipe would take on this machine, before it takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from nestling.compute.device import Hardware, matrix_rates
from nestling.errors import ModelError
from nestling.evaluation.suite import build_suite
from nestling.model.config import ModelConfig
from nestling.model.gguf_reader import read_gguf
from nestling.model.hf_folder import read_config
from nestling.workflow.fetch import known_bases
from nestling.workflow.recipe import Recipe

# Shares of the measured matrix-product rate that whole passes reach: two cores, 135M parameters (docs/decisions.md).
TRAIN_SHARE = 0.6
FORWARD_SHARE = 0.62
DECODE_SHARE = 0.34  # of a decode step's rows
DECODE_SECONDS_PER_BYTE = 1 / 5.4e9  # a decode step reads every weight once, at well under the memory's speed
BATCH = 64
MEAN_ANSWER = 40  # tokens
MEAN_PROMPT = 45


@dataclass(frozen=True)
class Cost:
    """Seconds by stage, peak memory of the trainer and disk in bytes."""

    seconds: dict[str, float]
    memory: float
    disk: float


def cost(recipe: Recipe, config: ModelConfig, hardware: Hardware) -> Cost:
    """Work divided by what this machine was measured to do."""
    n = config.num_parameters()
    rate = matrix_rates(hardware.device)[hardware.dtype]
    width = 2 if hardware.dtype == "bfloat16" else 4
    train = lambda tokens: 6 * n * tokens / (rate * TRAIN_SHARE)
    forward = lambda tokens: 2 * n * tokens / (rate * FORWARD_SHARE)
    row, weights = 2 * n / (rate * DECODE_SHARE), n * width * DECODE_SECONDS_PER_BYTE
    write = lambda answers, length, prompt, batch=BATCH: (
        forward(answers * prompt) + answers * length * (row + weights / batch)
    )
    ppo, ranking = recipe.ppo, sum(recipe.rank.prompts.values())
    asked_in_ppo = ppo.prompts * (ppo.iterations + ppo.critic_warmup)
    answers = asked_in_ppo * ppo.samples
    tokens = asked_in_ppo * MEAN_PROMPT + answers * MEAN_ANSWER
    asked = len(build_suite("gate", sizes=recipe.evaluation.sizes).items)
    measure = write(asked, MEAN_ANSWER, MEAN_PROMPT)
    seconds = {
        "replay": write(recipe.data.replay, 110, 30),
        "sft": train(recipe.sft.max_tokens),
        "rank": write(ranking * recipe.rank.samples, MEAN_ANSWER, MEAN_PROMPT),
        "reward_model": train(recipe.reward_model.max_tokens),
        "ppo": write(answers, MEAN_ANSWER, MEAN_PROMPT / ppo.samples, ppo.prompts * ppo.samples)
        + 3 * forward(tokens)
        + ppo.epochs * train(tokens),
        "evaluation": 3 * measure,
    }
    # Weights, gradients, two moments and the master; the frozen reference and reward model; activations of a row.
    full = n * (width + 4 * 4) if not ppo.lora else n * width * 1.1
    frozen = n * width * (1 if ppo.lora else 2)
    activations = ppo.row_tokens * config.num_layers * config.hidden_size * 34 * width
    logits = ppo.row_tokens * config.vocab_size * width
    separate = n * (width + 4 * 4) if ppo.critic == "separate" else 0
    versions = 4 * n * width
    return Cost(seconds, full + frozen + separate + activations + logits + 5e8, versions + n * 12 * 2 + 2e8)


def shape_of(recipe: Recipe) -> ModelConfig:
    """The base's shape, without downloading it: a known base's is in the manifest, a local one's is read."""
    known = known_bases().get(recipe.base)
    if known is not None:
        return ModelConfig.from_hf(known.config, recipe.base)
    path = Path(recipe.base).expanduser()
    if not path.exists():
        known_names = ", ".join(known_bases())
        remedy = f"Use one of {known_names}, a folder or a .gguf file; a hub id needs to be fetched first."
        raise ModelError("there is no such base model on this machine.", where=recipe.base, remedy=remedy)
    if path.suffix == ".gguf":
        return ModelConfig.from_hf(read_gguf(path).config, str(path))
    return read_config(path)


def estimate_table(recipe: Recipe) -> Table:
    """The estimate for the terminal."""
    hardware, config = recipe.hardware.detect(), shape_of(recipe)
    found = cost(recipe, config, hardware)
    out = Table("stage", "about", title=f"{recipe.name} on {hardware.threads} threads, {hardware.dtype}")
    for stage, seconds in found.seconds.items():
        out.add_row(stage, f"{seconds / 60:.1f} min")
    out.add_row("all", f"{sum(found.seconds.values()) / 60:.0f} min")
    out.add_row("memory of the trainer", f"{found.memory / 2**30:.1f} GiB")
    out.add_row("disk", f"{found.disk / 2**30:.1f} GiB")
    return out

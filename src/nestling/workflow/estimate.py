"""What a recipe would take on this machine, before it takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from nestling.compute.device import Hardware
from nestling.errors import ModelError
from nestling.evaluation.suite import build_suite
from nestling.model.config import ModelConfig
from nestling.model.gguf_reader import read_gguf
from nestling.model.hf_folder import read_config
from nestling.workflow.fetch import known_bases
from nestling.workflow.pace import PROMPT, Pace, measured_pace
from nestling.workflow.recipe import Recipe, check_shape

KEPT = 1.9e9  # bytes: the process, its kernels, answering, and what the allocator keeps between pieces of other sizes
ACTIVATIONS = 14.7  # numbers kept for the backward pass by each token and layer, in hidden sizes
ANSWER, LONG_ANSWER = 30, 60  # tokens; the base seldom ends by itself


@dataclass(frozen=True)
class Cost:
    """Seconds by stage, peak memory of the trainer and disk in bytes."""

    seconds: dict[str, float]
    memory: float
    disk: float


def trained_share(config: ModelConfig, frozen_blocks: int) -> float:
    """The share of parameters that ``training.trained_part`` trains: an output layer of its own too."""
    if not frozen_blocks:
        return 1.0
    parameters, embeddings = config.num_parameters(), config.vocab_size * config.hidden_size
    output = 0 if config.tie_embeddings else embeddings
    blocks = parameters - embeddings - output
    return (output + blocks * (1 - frozen_blocks / config.num_layers)) / parameters


def cost(recipe: Recipe, config: ModelConfig, hardware: Hardware, pace: Pace | None = None) -> Cost:
    """What a recipe takes at this pace, measured now unless given."""
    check_shape(recipe, config)
    seconds = seconds_by_stage(recipe, config, pace or measured_pace(config, hardware))
    versions = 4 * hardware.torch_dtype.itemsize * config.num_parameters()
    checkpoints = 2 * 12 * config.num_parameters()
    return Cost(seconds, trainer_memory(recipe, config, hardware), versions + checkpoints + 2e8)


def seconds_by_stage(recipe: Recipe, config: ModelConfig, pace: Pace) -> dict[str, float]:
    """Tokens of every stage at this pace."""
    ppo = recipe.ppo
    share = lambda stage: trained_share(config, stage.frozen_blocks)
    asked = len(build_suite("gate", sizes=recipe.evaluation.sizes).items)
    prompts = ppo.prompts * (ppo.iterations + ppo.critic_warmup)
    seen = prompts * (PROMPT + ppo.samples * ANSWER)
    rehearsed = ppo.demonstration_tokens * ppo.minibatches * ppo.iterations if ppo.demonstration_coef else 0
    below = ppo.frozen_blocks / config.num_layers  # gone through once: not for the reference, nor in updates
    readers = 2 + (ppo.learned_weight > 0)  # the policy, the reference, and the reward model
    return {
        "replay": pace.answer(recipe.data.replay, 1, recipe.data.replay_max_tokens),
        "sft": pace.train(recipe.sft.max_tokens, share(recipe.sft)),
        "gate-base": pace.answer(asked, 1, LONG_ANSWER),
        "gate-sft": pace.answer(asked, 1, ANSWER),
        "rank": pace.answer(sum(recipe.rank.prompts.values()), recipe.rank.samples, ANSWER),
        "reward_model": pace.train(recipe.reward_model.max_tokens, share(recipe.reward_model)),
        "ppo": pace.answer(prompts, ppo.samples, ANSWER)
        + (readers - below * (1 + ppo.epochs)) * pace.read(seen)
        + ppo.epochs * pace.train(seen + rehearsed, share(ppo)),
        "gate-ppo": pace.answer(asked, 1, ANSWER),
    }


def trainer_memory(recipe: Recipe, config: ModelConfig, hardware: Hardware) -> float:
    """Bytes at the peak, which is PPO's or that of the widest row of fine-tuning and reward model."""
    n, width, ppo = config.num_parameters(), hardware.torch_dtype.itemsize, recipe.ppo
    # fp32 masters (beside smaller weights), two moments and the gradient
    states = lambda stage: n * (12 if width == 4 else 16) * trained_share(config, stage.frozen_blocks)
    activations = lambda tokens, stage: (
        tokens * (config.num_layers - stage.frozen_blocks) * config.hidden_size * ACTIVATIONS * width
    )
    supervised = n * width + max(
        (0 if recipe.sft.lora else states(recipe.sft)) + activations(recipe.sft.row_tokens, recipe.sft),
        states(recipe.reward_model) + activations(recipe.reward_model.row_tokens, recipe.reward_model),
    )
    update = ppo.prompts * (PROMPT + ppo.samples * ANSWER) / ppo.minibatches + ppo.demonstration_tokens
    in_flight = min(update, ppo.row_tokens * hardware.workers)
    networks = 3 + (ppo.learned_weight > 0)  # the policy, the same laid out for answering, and frozen ones
    aligned = (0 if ppo.lora else states(ppo)) + networks * n * width + activations(in_flight, ppo)
    separate = n * (16 if width == 4 else 18) if ppo.critic == "separate" else 0
    return KEPT + max(supervised, aligned + separate)


def shape_of(recipe: Recipe) -> ModelConfig:
    """The base's shape, without downloading it: a known base's is in the manifest, a local one's is read."""
    known = known_bases().get(recipe.base)
    if known is not None:
        return ModelConfig.from_hf(known.config, recipe.base)
    path = Path(recipe.base).expanduser()
    if not path.exists():
        remedy = f"Use one of {', '.join(known_bases())}, a folder or a .gguf file. "
        remedy += "A hub id: run `nestling fetch ORG/NAME` first, and give the folder that it names."
        raise ModelError("there is no such base model on this machine.", where=recipe.base, remedy=remedy)
    if path.suffix == ".gguf":
        return ModelConfig.from_hf(read_gguf(path).config, str(path))
    return read_config(path)


def estimate_table(
    recipe: Recipe, config: ModelConfig, hardware: Hardware, pace: Pace | None = None
) -> Table:
    """The estimate for the terminal."""
    found = cost(recipe, config, hardware, pace)
    out = Table("stage", "about", title=f"{recipe.name} on {hardware.threads} threads, {hardware.dtype}")
    for stage, seconds in found.seconds.items():
        out.add_row(stage, f"{seconds / 60:.1f} min")
    out.add_row("all", f"{sum(found.seconds.values()) / 60:.0f} min")
    out.add_row("memory of the trainer", f"{found.memory / 2**30:.1f} GiB")
    out.add_row("disk", f"{found.disk / 2**30:.1f} GiB")
    return out

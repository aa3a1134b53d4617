"""Fitting a recipe to the user's own conversations, to the model, and to the memory and the time that there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nestling.compute.device import Hardware
from nestling.data.formats import Conversation, read_rows
from nestling.model.config import ModelConfig
from nestling.text.messages import Message
from nestling.training.settings import LoRAConfig
from nestling.workflow.estimate import seconds_by_stage, trainer_memory
from nestling.workflow.pace import Pace, measured_pace
from nestling.workflow.recipe import DataConfig, Recipe

OWN_SHARE = 0.25
"""What one's own conversations are to be of fine-tuning at least, by showing few of them often."""
MOST_REPEATS = 8
MOST_GROWTH = 4
"""How many times the recipe's tokens own conversations may add; there is a limit to what an evening can hold."""
FREE = 0.85  # of the memory that is there: the server, the page and the system want some too
SMALLEST_ROW = 512
PARTS = [number / 20 for number in range(20, 1, -1)]
"""Of what a recipe learns from, the parts that are tried until it fits the time."""


@dataclass(frozen=True)
class OwnData:
    """What the user's files hold, in tokens as the starter base would count them."""

    conversations: int = 0
    tokens: int = 0
    longest: int = 0

    @classmethod
    def of(cls, files: Iterable[str]) -> OwnData:
        """Read and count them.

        Raises:
            DataError: a line cannot be used.
        """
        lengths = [about(row.messages) for name in files for row in read_rows(Path(name), Conversation)]
        return cls(len(lengths), sum(lengths), max(lengths, default=0))


def about(messages: Sequence[Message]) -> int:
    """About how many tokens a conversation has: four letters of English each, one character of Chinese, and the frame
    around every turn."""
    text = "".join(message["content"] for message in messages)
    wide = sum(ord(c) > 0x2E80 for c in text)
    return math.ceil((len(text) - wide) / 4 + wide * 1.5) + 6 * len(messages)


@dataclass(frozen=True)
class Scaled:
    """A recipe as it will be run here, and a sentence for each thing that was changed."""

    recipe: Recipe
    notes: list[str]


def scaled(
    recipe: Recipe,
    shape: ModelConfig,
    hardware: Hardware,
    memory: int | None = None,
    pace: Pace | None = None,
) -> Scaled:
    """Fit ``recipe`` to its files, to the model's context, to ``memory`` (bytes; what is free, if None), and to its
    ``minutes`` at this ``pace`` (measured now, if None).

    Nothing changes where there are no files, and memory and time are plenty: then a recipe is what it says.

    Raises:
        DataError: a line of a file cannot be used.
    """
    notes: list[str] = []
    if recipe.data.files:
        recipe = to_own_data(recipe, OwnData.of(recipe.data.files), shape, notes.append)
    room = FREE * (memory or psutil.virtual_memory().available)
    recipe = to_memory(recipe, shape, hardware, room, notes.append)
    if recipe.minutes is not None:
        recipe = to_time(recipe, shape, pace or measured_pace(shape, hardware), notes.append)
    return Scaled(recipe, notes)


def to_own_data(recipe: Recipe, own: OwnData, shape: ModelConfig, told: Callable[[str], None]) -> Recipe:
    """Show own conversations often enough to be learnt, add the time for that, and rows as long as they are."""
    sft = recipe.sft
    repeats = recipe.data.own_repeats or min(
        MOST_REPEATS, max(1, math.ceil(OWN_SHARE * sft.max_tokens / own.tokens))
    )
    added = min(repeats * own.tokens, MOST_GROWTH * sft.max_tokens)
    told(
        f"Your {own.conversations} conversations (about {own.tokens:,} tokens) are shown {times(repeats)} "
        f"and add {added:,} tokens to the fine-tuning's {sft.max_tokens:,}."
    )
    if added < own.tokens:
        told(
            f"That is {added / own.tokens:.0%} of them, drawn at random: sft.max_tokens="
            f"{sft.max_tokens + own.tokens} would read all."
        )
    row = min(max(sft.row_tokens, math.ceil(1.2 * own.longest)), shape.context_length)
    if row > sft.row_tokens:
        told(f"Rows hold {row} tokens instead of {sft.row_tokens}: as long as your longest conversation.")
    changed = {
        "max_tokens": sft.max_tokens + added,
        "row_tokens": row,
        "batch_tokens": max(row, sft.batch_tokens),
    }
    data: DataConfig = recipe.data.model_copy(update={"own_repeats": repeats})
    return recipe.model_copy(update={"data": data, "sft": sft.model_copy(update=changed)})


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def to_memory(
    recipe: Recipe, shape: ModelConfig, hardware: Hardware, room: float, told: Callable[[str], None]
) -> Recipe:
    """Shorter rows, then adapters instead of all weights, until the trainer fits ``room`` bytes."""
    needed = lambda: trainer_memory(recipe, shape, hardware)
    while needed() > room and max(recipe.sft.row_tokens, recipe.reward_model.row_tokens) > SMALLEST_ROW:
        recipe = with_rows(recipe, max(recipe.sft.row_tokens, recipe.reward_model.row_tokens) // 2)
        told(f"Rows are cut to {recipe.sft.row_tokens} tokens, to fit {room / 2**30:.1f} GiB of memory.")
    if needed() > room and recipe.sft.lora is None:
        adapters = LoRAConfig()
        # Adapters want a rate about ten times that of all weights (Hu et al. 2021).
        recipe = recipe.model_copy(
            update={
                "sft": recipe.sft.model_copy(update={"lora": adapters, "learning_rate": 5e-4}),
                "ppo": recipe.ppo.model_copy(
                    update={"lora": adapters, "learning_rate": 10 * recipe.ppo.learning_rate}
                ),
            }
        )
        told(f"Adapters of rank {adapters.rank} are trained instead of all weights, to fit the memory.")
    if needed() > room:
        blocks = shape.num_layers - max(2, shape.num_layers // 8)
        update = {"frozen_blocks": max(blocks, recipe.reward_model.frozen_blocks)}
        recipe = recipe.model_copy(update={"reward_model": recipe.reward_model.model_copy(update=update)})
        told(f"The reward model trains its last {shape.num_layers - blocks} blocks only, to fit the memory.")
    if needed() > room:
        told(
            f"It may still need {needed() / 2**30:.1f} GiB where {room / 2**30:.1f} are free: close other programs, "
            "or take a smaller base."
        )
    return recipe


def with_rows(recipe: Recipe, most: int) -> Recipe:
    """The recipe with rows of at most ``most`` tokens in fine-tuning and reward model."""
    cut = lambda stage: stage.model_copy(
        update={"row_tokens": min(stage.row_tokens, max(most, SMALLEST_ROW))}
    )
    return recipe.model_copy(update={"sft": cut(recipe.sft), "reward_model": cut(recipe.reward_model)})


def to_time(recipe: Recipe, shape: ModelConfig, pace: Pace, told: Callable[[str], None]) -> Recipe:
    """The largest part of the recipe that takes its minutes. The gate asks as much as ever: what it is to find has
    become smaller, not what it must be sure of."""
    if recipe.minutes is None:
        return recipe
    takes = lambda part: sum(seconds_by_stage(part_of(recipe, part), shape, pace).values()) / 60
    part = next((part for part in PARTS if takes(part) <= recipe.minutes), PARTS[-1])
    if part < 1:
        told(
            f"It would take about {takes(1):.0f} minutes here. With {part:.0%} of the conversations, rankings and "
            f"iterations it takes about {takes(part):.0f} of the {recipe.minutes:g} minutes."
        )
    return part_of(recipe, part)


def part_of(recipe: Recipe, part: float) -> Recipe:
    """The recipe with a part of what every stage learns from."""
    some = lambda count: math.ceil(part * count)
    fewer = {
        "data": {"replay": some(recipe.data.replay)},
        "sft": {"max_tokens": some(recipe.sft.max_tokens)},
        "rank": {"prompts": {name: some(count) for name, count in recipe.rank.prompts.items()}},
        "reward_model": {"max_tokens": some(recipe.reward_model.max_tokens)},
        "ppo": {"iterations": some(recipe.ppo.iterations)},
    }
    sections = {name: getattr(recipe, name).model_copy(update=update) for name, update in fewer.items()}
    return recipe.model_copy(update=sections)

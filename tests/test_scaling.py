"""A recipe is fitted to the user's conversations, to the model's context and to the memory that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.compute.device import Hardware
from nestling.data.formats import Conversation, write_rows
from nestling.model.config import ModelConfig
from nestling.workflow import pace as pace_module
from nestling.workflow.estimate import seconds_by_stage, shape_of, trainer_memory
from nestling.workflow.pace import PROMPT, Pace, _timed, measured_pace
from nestling.workflow.recipe import Recipe, load_recipe
from nestling.workflow.scaling import OwnData, Scaled, about, scaled, to_memory, to_own_data
from test_text_support import assistant, user
from tiny import tiny_model

RECIPE = load_recipe("quickstart")
SHAPE = shape_of(RECIPE)
TWO_CORES = Hardware("cpu", "bfloat16", 2)
PLENTY = 64 * 2**30


def own(tmp_path: Path, *texts: str) -> Recipe:
    path = tmp_path / "own.jsonl"
    write_rows(path, [Conversation([user(text), assistant("Yes.")]) for text in texts])
    return load_recipe("quickstart", files=[str(path)])


def test_without_files_and_with_memory_a_recipe_is_what_it_says() -> None:
    found = scaled(RECIPE, SHAPE, TWO_CORES, PLENTY)
    assert found.recipe == RECIPE and found.notes == []


def test_few_conversations_are_shown_often_and_add_their_time(tmp_path: Path) -> None:
    recipe = own(tmp_path, *(f"How do I reset device number {n}?" for n in range(20)))
    found = scaled(recipe, SHAPE, TWO_CORES, PLENTY)
    tokens = OwnData.of(recipe.data.files).tokens
    assert found.recipe.data.own_repeats == 8
    assert found.recipe.sft.max_tokens == recipe.sft.max_tokens + 8 * tokens
    assert "Your 20 conversations" in found.notes[0] and "8 times" in found.notes[0]
    assert found.recipe.ppo == recipe.ppo


def test_how_often_can_be_said(tmp_path: Path) -> None:
    recipe = own(tmp_path, "Where is the key?")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"own_repeats": 3})})
    assert scaled(recipe, SHAPE, TWO_CORES, PLENTY).recipe.data.own_repeats == 3


def test_a_long_conversation_lengthens_rows_up_to_the_context(tmp_path: Path) -> None:
    recipe = own(tmp_path, "word " * 2000)
    found = scaled(recipe, SHAPE, TWO_CORES, PLENTY)
    longest = OwnData.of(recipe.data.files).longest
    assert longest < found.recipe.sft.row_tokens <= SHAPE.context_length
    assert any("as long as your longest conversation" in note for note in found.notes)
    short = replace(SHAPE, context_length=2000)
    assert scaled(recipe, short, TWO_CORES, PLENTY).recipe.sft.row_tokens == 2000


def test_much_data_is_read_in_part_and_that_is_said() -> None:
    notes: list[str] = []
    found = to_own_data(RECIPE, OwnData(100_000, 20_000_000, 500), SHAPE, notes.append)
    assert found.sft.max_tokens == 5 * RECIPE.sft.max_tokens and found.data.own_repeats == 1
    assert f"sft.max_tokens={RECIPE.sft.max_tokens + 20_000_000} would read all" in notes[1]


def test_little_memory_gives_shorter_rows_then_adapters() -> None:
    notes: list[str] = []
    needed = trainer_memory(RECIPE, SHAPE, TWO_CORES)
    less = to_memory(RECIPE, SHAPE, TWO_CORES, 0.9 * needed, notes.append)
    assert (
        less.sft.row_tokens < RECIPE.sft.row_tokens and less.sft.lora is None and "Rows are cut" in notes[0]
    )
    large = replace(SHAPE, hidden_size=2048, intermediate_size=8192, num_layers=24)
    fitted = to_memory(RECIPE, large, TWO_CORES, 16 * 2**30, notes.append)
    assert fitted.sft.lora is not None and fitted.ppo.lora is not None
    assert trainer_memory(fitted, large, TWO_CORES) <= 16 * 2**30
    to_memory(RECIPE, large, TWO_CORES, 2**30, notes.append)
    assert "It may still need" in notes[-1]


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 10**5))
def test_any_amount_of_data_gives_a_recipe_within_its_bounds(count: int, tokens: int, longest: int) -> None:
    found = to_own_data(RECIPE, OwnData(count, max(tokens, longest), longest), SHAPE, lambda _: None)
    assert RECIPE.sft.max_tokens < found.sft.max_tokens <= 5 * RECIPE.sft.max_tokens
    assert 1 <= found.data.own_repeats <= 8
    assert RECIPE.sft.row_tokens <= found.sft.row_tokens <= SHAPE.context_length


def test_the_guess_of_tokens_is_near_for_english_and_chinese() -> None:
    assert about([user("Tell me more about the weather in the mountains, please.")]) == pytest.approx(
        20, abs=4
    )
    assert about([user("今天天气怎么样？")]) == pytest.approx(18, abs=4)


def test_a_recipe_fits_the_minutes_that_it_is_given() -> None:
    pace = Pace(train_token=3e-3, read_token=1e-3, write_token=1e-3)
    minutes = lambda recipe: sum(seconds_by_stage(recipe, SHAPE, pace).values()) / 60
    whole = minutes(RECIPE)
    half = RECIPE.model_copy(update={"minutes": 0.5 * whole})
    found = scaled(half, SHAPE, TWO_CORES, PLENTY, pace)
    assert 0.4 * whole < minutes(found.recipe) <= 0.5 * whole
    assert (
        found.recipe.sft.max_tokens < RECIPE.sft.max_tokens and found.recipe.evaluation == RECIPE.evaluation
    )
    assert f"about {whole:.0f} minutes" in found.notes[0]
    plenty = RECIPE.model_copy(update={"minutes": 2 * whole})
    assert scaled(plenty, SHAPE, TWO_CORES, PLENTY, pace) == Scaled(plenty, [])
    hopeless = scaled(RECIPE.model_copy(update={"minutes": 0.01}), SHAPE, TWO_CORES, PLENTY, pace)
    assert minutes(hopeless.recipe) > 0.01 and "of the 0.01 minutes" in hopeless.notes[0]


def test_a_pace_counts_tokens() -> None:
    pace = Pace(train_token=3.0, read_token=1.0, write_token=10.0)
    assert pace.train(10) == 30 and pace.train(10, share=0) == 10  # forward alone is a third
    assert pace.answer(2, samples=3, length=5) == 2 * PROMPT + 10 * 2 * 3 * 5


def test_of_a_large_model_some_blocks_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def remembered(config: ModelConfig, hardware: Hardware) -> Pace:
        timed.append(config.num_layers)
        return _timed(config, hardware)

    monkeypatch.setattr(pace_module, "_timed", remembered)
    hardware, shape = Hardware("cpu", "float32", 1), replace(tiny_model().config, num_layers=5)
    whole = measured_pace(shape, hardware)
    monkeypatch.setattr(pace_module, "TIMED", replace(shape, num_layers=3).num_parameters())
    part = measured_pace(shape, hardware)
    assert timed == [5, 3, 1]
    # How close they are is for a quiet machine to say: a tiny model takes as long as its neighbours let it.
    assert all(seconds > 0 for pace in (whole, part) for seconds in vars(pace).values())

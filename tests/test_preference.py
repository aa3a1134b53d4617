"""DPO and KTO as stages: nothing moved at the start, what is preferred grows likelier, killed runs end the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nestling.errors import DataError
from nestling.model.hf_folder import LoadedModel
from nestling.model.rows import pack_answers
from nestling.training.preference import (
    DPO,
    KTO,
    DPOConfig,
    KTOConfig,
    LabelledIds,
    PairIds,
    PolicyAndReference,
    train_preference,
    with_foreign_answers,
)
from nestling.training.settings import LoRAConfig
from nestling.training.trained_part import choose_trained
from nestling.workspace.events import EventLog
from test_text_support import user
from test_training import assert_equal, run_in_pieces
from tiny import tiny_model

WORDS = ["sun", "moon", "star", "tree", "river", "stone", "cloud", "bird", "fish", "leaf"]


def pairs(model: LoadedModel) -> list[PairIds]:
    """The better answer says "good", the worse one "bad"."""
    encode, end = model.tokenizer.encode, model.tokenizer.eos_id
    prompts = [
        model.tokenizer.render_prompt([user(f"question {i} about {WORDS[i % 10]}")]) for i in range(24)
    ]
    answer = lambda word, i: [*encode(f"{word} {WORDS[i % 7]}"), end]
    return [PairIds(prompt, answer("good", i), answer("bad", i + 3)) for i, prompt in enumerate(prompts)]


def labelled(model: LoadedModel) -> list[LabelledIds]:
    given = [
        (p.prompt, p.chosen if i % 2 else p.rejected, i % 2 == 1, 1.0) for i, p in enumerate(pairs(model))
    ]
    return with_foreign_answers(given, seed=3)


def settings(kind: type[Any], **more: Any) -> Any:
    usual = {"learning_rate": 1e-3, "epochs": 6, "row_tokens": 256, "batch_tokens": 256, "max_tokens": 10**6}
    return kind(**usual | more)


def gains(model: LoadedModel, data: list[PairIds], before: torch.Tensor) -> torch.Tensor:
    network = PolicyAndReference(model.decoder, lora=True)  # no copy: only its own likelihoods are asked for
    with torch.no_grad():
        after, _ = network(pack_answers([pair.group for pair in data], model.decoder.device))
    return (after - before).view(-1, 2)


def test_at_the_start_policy_and_reference_agree_to_the_last_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for lora in (None, LoRAConfig(rank=2)):
            model = tiny_model(dtype=dtype)
            data = pairs(model)
            choose_trained(model.decoder, 0, lora)
            stage = DPO(model.decoder, data[:18], data[18:], settings(DPOConfig, lora=lora), tmp_path)
            found = stage.validate()
            assert found["validation_loss"] == pytest.approx(0.693147, abs=1e-6)
            assert found["validation_margin"] == 0 == found["validation_chosen_gain"]


@pytest.mark.parametrize(
    "more", [{}, {"loss": "ipo", "beta": 0.3}, {"loss": "hinge"}, {"label_smoothing": 0.1}, {"frozen_blocks": 1},
             {"lora": LoRAConfig(rank=4), "learning_rate": 1e-2}],
)  # fmt: skip
def test_dpo_learns_what_is_preferred_on_prompts_that_were_held_out(
    more: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model()
    data = pairs(model)
    row = pack_answers([pair.group for pair in data[18:]], model.decoder.device)
    with torch.no_grad():
        before, _ = PolicyAndReference(model.decoder, lora=True)(row)
    report = train_preference(
        model, data[:18], data[18:], settings(DPOConfig, **more), tmp_path, EventLog(tmp_path / "e")
    )
    moved = gains(model, data[18:], before)
    assert report.best_loss < report.first_loss
    assert bool((moved[:, 0] > moved[:, 1]).all())


def test_the_sft_term_keeps_the_chosen_answer_likely(tmp_path: Path) -> None:
    chosen = []
    for coef in (0.0, 2.0):
        model = tiny_model()
        data = pairs(model)
        row = pack_answers([pair.group for pair in data[18:]], model.decoder.device)
        with torch.no_grad():
            before, _ = PolicyAndReference(model.decoder, lora=True)(row)
        config = settings(DPOConfig, sft_coef=coef)
        folder = tmp_path / str(coef)
        train_preference(model, data[:18], data[18:], config, folder, EventLog(folder / "e"))
        chosen.append(gains(model, data[18:], before)[:, 0].mean().item())
    assert chosen[1] > chosen[0] + 1


def test_a_demonstration_teaches_by_its_own_likelihood_alone(tmp_path: Path) -> None:
    model = tiny_model()
    shown = [PairIds(pair.prompt, pair.chosen, []) for pair in pairs(model)]
    choose_trained(model.decoder, 0, None)
    for coefficient, moves in ((0.0, False), (0.5, True)):
        stage = DPO(
            model.decoder, shown[:18], shown[18:], settings(DPOConfig, sft_coef=coefficient), tmp_path
        )
        loss = stage.row_loss(PolicyAndReference(model.decoder, lora=False), shown[:4])
        assert loss.metrics["pair_accuracy"] == (0.0, 0) and (loss.total.item() > 0) is moves
        network = PolicyAndReference(model.decoder, lora=True)
        own, _ = network(pack_answers([pair.group for pair in shown[:4]], model.decoder.device))
        means = -own.view(-1, 2)[:, 0] / torch.tensor([len(pair.chosen) for pair in shown[:4]])
        assert loss.total.item() == pytest.approx(coefficient * means.sum().item(), rel=1e-5)


def test_kto_learns_from_labels_alone(tmp_path: Path) -> None:
    model = tiny_model()
    data, held = labelled(model), pairs(model)[18:]
    row = pack_answers([pair.group for pair in held], model.decoder.device)
    with torch.no_grad():
        before, _ = PolicyAndReference(model.decoder, lora=True)(row)
    config = settings(KTOConfig, epochs=12)
    train_preference(model, data[:18], data[18:], config, tmp_path, EventLog(tmp_path / "e"))
    moved = gains(model, held, before)
    assert bool((moved[:, 0] > moved[:, 1]).all())


def test_a_foreign_answer_is_another_prompts(tmp_path: Path) -> None:
    data = labelled(tiny_model())
    answers = [item.answer for item in data]
    assert sorted(item.foreign for item in data) == sorted(answers)
    assert sum(item.foreign == item.answer for item in data) <= 4  # some answers are worded alike


def test_packed_pairs_give_the_loss_of_separate_ones(tmp_path: Path) -> None:
    model = tiny_model()
    data = pairs(model)[:5]
    choose_trained(model.decoder, 0)
    stage = DPO(model.decoder, data, data, settings(DPOConfig), tmp_path)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.02)
    together = stage.row_loss(stage.learner.networks[0], data)
    apart = sum(stage.row_loss(stage.learner.networks[0], [pair]).total.item() for pair in data)
    assert together.total.item() == pytest.approx(apart, rel=1e-4) and together.count == 5


def test_a_pair_of_half_weight_counts_half(tmp_path: Path) -> None:
    model = tiny_model()
    data = pairs(model)[:4]
    choose_trained(model.decoder, 0)
    stage = DPO(model.decoder, data, data, settings(DPOConfig), tmp_path)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.02)
    network = stage.learner.networks[0]
    halved = [PairIds(p.prompt, p.chosen, p.rejected, 0.5 if i == 0 else 1.0) for i, p in enumerate(data)]
    whole, less = stage.row_loss(network, data), stage.row_loss(network, halved)
    first = stage.row_loss(network, data[:1]).total.item()
    assert less.total.item() == pytest.approx(whole.total.item() - first / 2, rel=1e-4) and less.count == 3.5


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_killed_and_resumed_is_bit_equal(kind: str, tmp_path: Path) -> None:
    def make_stage(folder: Path) -> Any:
        model = tiny_model(dtype=torch.bfloat16)
        choose_trained(model.decoder, 0)
        if kind == "dpo":
            data: list[Any] = list(pairs(model))
            return DPO(model.decoder, data[:18], data[18:], settings(DPOConfig, epochs=2), folder)
        data = list(labelled(model))
        return KTO(model.decoder, data[:18], data[18:], settings(KTOConfig, epochs=2), folder)

    whole = run_in_pieces(make_stage, tmp_path / "whole", [])
    pieces = run_in_pieces(make_stage, tmp_path / "pieces", [1, 2])
    assert_equal(whole.learner.optimizer.state(), pieces.learner.optimizer.state())
    assert whole.best.state() == pieces.best.state()


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    data = pairs(model)
    with pytest.raises(DataError, match="no judgments to train on"):
        train_preference(model, [], data, DPOConfig(), tmp_path, EventLog(tmp_path / "e"))
    with pytest.raises(DataError, match="longer than a row may be"):
        train_preference(model, data, data, DPOConfig(row_tokens=16), tmp_path, EventLog(tmp_path / "e"))

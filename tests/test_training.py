"""Training code fails silently, so: invariances, memorisation, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nestling.errors import ConfigError, DataError, TrainingStopped
from nestling.generation.engine import Engine
from nestling.generation.protocol import Request, Sampling
from nestling.model.hf_folder import LoadedModel
from nestling.model.rows import pack_row
from nestling.model.scorer import Scorer
from nestling.text.samples import TokenSample, training_samples
from nestling.training.learner import Learner, Loss
from nestling.training.loop import fit
from nestling.training.optimizer import MasterAdamW, ParameterGroup, trainable
from nestling.training.plan import plan_steps
from nestling.training.reward_model import RankedIds, RewardModelConfig, RewardModelStage, train_reward_model
from nestling.training.schedule import rate_scale
from nestling.training.settings import LoRAConfig
from nestling.training.sft import SFT, SFTConfig, sample_loss, train_sft
from nestling.training.trained_part import choose_trained
from nestling.workflow.estimate import trained_share
from nestling.workspace.events import EventLog
from test_text_support import assistant, user
from tiny import tiny_model

CPU = torch.device("cpu")
WORDS = ["red", "blue", "tree", "bird", "stone", "river", "lamp", "cloud", "apple", "horse"]


def conversations() -> list[list[Any]]:
    """Twenty different questions with different answers."""
    return [
        [
            user(f"word {i} of {WORDS[i % 10]}?"),
            assistant(f"{WORDS[(3 * i) % 10]} {WORDS[(i // 2) % 10]} {i}"),
        ]
        for i in range(20)
    ]


def samples_of(model: LoadedModel) -> list[TokenSample]:
    return [s for c in conversations() for s in training_samples(model.tokenizer, c, "test")]


def weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.decoder.named_parameters()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def learner_for(model: LoadedModel, rate: float = 1e-3) -> Learner:
    return Learner(model.decoder, [ParameterGroup(trainable(model.decoder), rate)])


def test_one_row_of_eight_equals_eight_rows_of_one() -> None:
    results = []
    for split in (1, 2, 8):
        model = tiny_model()
        chosen = samples_of(model)[:8]
        size = 8 // split
        rows = [pack_row(chosen[i : i + size], CPU) for i in range(0, 8, size)]
        count = sum(len(r.targets) for r in rows)
        metrics = learner_for(model).update(rows, count, sample_loss, 1.0)
        results.append((metrics["loss"], metrics["grad_norm"], weights(model)))
    for loss, norm, state in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5) and norm == pytest.approx(
            results[0][1], rel=1e-4
        )
        # Adam's first step is the sign of the gradient, so compare where the gradient is not noise around zero.
        close = [torch.isclose(state[n], results[0][2][n], atol=1e-5).float().mean() for n in state]
        assert min(close) > 0.995


def test_the_loss_counts_answer_tokens_and_their_end_token_only() -> None:
    model = tiny_model()
    [sample] = training_samples(model.tokenizer, conversations()[0], "test")
    row = pack_row([sample], CPU)
    wanted = [t for t, m in zip(sample.ids, sample.loss_mask, strict=True) if m]
    assert row.targets.tolist() == wanted and wanted[-1] == model.tokenizer.eos_id
    assert row.ids[row.predictors + 1].tolist() == wanted


def test_bf16_updates_too_small_to_see_move_the_masters() -> None:
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = MasterAdamW([ParameterGroup({"w": layer.weight}, 1e-6)])
    for _ in range(3):
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None  # it went to the master, in fp32
        optimizer.step(1.0)
    assert torch.equal(layer.weight, torch.ones(4, 4, dtype=torch.bfloat16))
    assert torch.allclose(optimizer.masters["w"], torch.full((4, 4), 1 - 3e-6), atol=1e-7)
    for _ in range(6000):
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1.0)
    assert (layer.weight < 1).all()


def test_two_trainings_of_one_model_both_train() -> None:
    """The first optimizer lets go of the gradients: kept, its hooks would swallow the second one's."""
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    first = MasterAdamW([ParameterGroup({"w": layer.weight}, 0.1)])
    first.close()
    second = MasterAdamW([ParameterGroup({"w": layer.weight}, 0.1)])
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert not first.masters["w"].grad.any() and second.masters["w"].grad.all()
    second.step(1.0)
    assert not torch.equal(before, layer.weight)


def test_every_training_lets_go_of_the_model(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    samples = samples_of(model)
    config = SFTConfig(max_tokens=2000, row_tokens=256, batch_tokens=256, epochs=1, learning_rate=1e-3)
    after = []
    for run in ("first", "second"):
        before = weights(model)
        train_sft(model, samples, samples, config, tmp_path / run, EventLog(tmp_path / run / "e"))
        after.append(any(not torch.equal(w, before[name]) for name, w in weights(model).items()))
    assert after == [True, True]
    assert not any(p._post_accumulate_grad_hooks for p in model.decoder.parameters())


def test_a_budget_below_one_row_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model()
    samples = samples_of(model)
    with pytest.raises(DataError, match="max_tokens = 5 does not hold one row"):
        train_sft(model, samples, samples, SFTConfig(max_tokens=5), tmp_path, EventLog(tmp_path / "e"))


def test_gradients_accumulate_in_fp32() -> None:
    """256 + 1 + 1 ... is 256 in bf16; the sum must not be lost."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([ParameterGroup({"w": weight}, 1e-3)])
    (weight * 256).sum().backward()
    for _ in range(8):
        (weight * 1).sum().backward()
    assert optimizer.masters["w"].grad.item() == 264


def test_clipping_bounds_the_joint_norm_of_each_network() -> None:
    a, b, c = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [ParameterGroup({"a": a}, 1.0), ParameterGroup({"b": b}, 1.0)]
    optimizer = MasterAdamW([*groups, ParameterGroup({"c": c}, 1.0, network="critic")])
    (a.sum() * 3 + b.sum() * 4 + c.sum() * 500).backward()
    norms = optimizer.clip_gradients(1.0)
    assert norms == {"model": pytest.approx((9 + 9 + 16) ** 0.5), "critic": pytest.approx(500)}
    assert torch.cat([a.grad, b.grad]).norm() == pytest.approx(1.0, abs=1e-5)
    assert c.grad.norm() == pytest.approx(1.0, abs=1e-5)


def test_divergence_stops_in_a_plain_sentence_and_leaves_the_weights() -> None:
    model = tiny_model()
    before = weights(model)
    row = pack_row(samples_of(model)[:1], CPU)
    nan = lambda _, __: Loss(sample_loss(model.decoder, row).total * float("nan"), 1)
    with pytest.raises(TrainingStopped, match=r"diverged\. Lower the learning rate"):
        learner_for(model).update([row], 1, nan, 1.0)
    assert_equal(before, weights(model))


def test_rate_warms_up_and_falls() -> None:
    assert [rate_scale(s, 10, 4, "constant") for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    for kind in ("linear", "cosine"):
        falling = [rate_scale(s, 100, 0, kind) for s in range(101)]
        assert falling == sorted(falling, reverse=True) and falling[-1] == pytest.approx(0.1)


def test_a_plan_sees_everything_once_an_epoch_within_the_budget() -> None:
    lengths = [5 + i % 13 for i in range(50)]
    size = {"row_tokens": 40, "batch_tokens": 100, "seed": 3}
    plan = plan_steps(lengths, token_budget=10**9, epochs=2, **size)
    seen = [i for step in plan for row in step for i in row]
    assert sorted(seen) == sorted(list(range(50)) * 2)
    assert all(sum(lengths[i] for i in row) <= 40 for step in plan for row in step)
    capped = plan_steps(lengths, token_budget=300, epochs=2, **size)
    assert sum(lengths[i] for step in capped for row in step for i in row) <= 300
    assert capped[0] == plan[0]


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (20, {"learning_rate": 1e-2, "epochs": 100}),
        (4, {"learning_rate": 5e-3, "epochs": 200, "lora": LoRAConfig(rank=16, alpha=32)}),
    ],
    ids=["full", "lora"],
)
def test_conversations_are_learned_by_heart(count: int, settings: dict[str, Any], tmp_path: Path) -> None:
    # Adapters leave the embeddings frozen: those must be large enough for the output to be certain of a token.
    model = tiny_model(std=0.3 if "lora" in settings else 0.08)
    samples = samples_of(model)[:count]
    config = SFTConfig(max_tokens=10**7, row_tokens=512, batch_tokens=10**6, validate_every=10, **settings)
    report = train_sft(model, samples, samples, config, tmp_path / "sft", EventLog(tmp_path / "events.jsonl"))
    assert report.best_loss < 0.01
    questions = [Request(c[:1], Sampling(temperature=0, max_tokens=30)) for c in conversations()[:count]]
    answers = Engine(model).generate(questions)
    assert [a.text for a in answers] == [c[1]["content"] for c in conversations()[:count]]
    assert all(a.finished for a in answers)


def test_the_checkpoint_of_lowest_validation_loss_is_kept(tmp_path: Path) -> None:
    """Trained far too hard on one half, the other half gets worse: the early weights must come back."""
    model = tiny_model()
    samples = samples_of(model)
    config = SFTConfig(learning_rate=2e-2, epochs=20, max_tokens=10**7, row_tokens=512, batch_tokens=10**6,
                       validate_every=2, warmup_steps=1, schedule="constant")  # fmt: skip
    report = train_sft(model, samples[:4], samples[10:], config, tmp_path / "sft", EventLog(tmp_path / "e"))
    assert report.best_step < report.steps and not report.still_falling
    check = SFT(model.decoder, samples[:4], samples[10:], config, tmp_path / "other")
    assert check.validate()["validation_loss"] == pytest.approx(report.best_loss, abs=1e-5)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_interpolated_weights_lie_on_the_way_to_the_trained_ones(
    lora: LoRAConfig | None, tmp_path: Path
) -> None:
    def trained(share: float) -> tuple[dict[str, torch.Tensor], Any]:
        model, folder = tiny_model(), tmp_path / f"{share}"
        samples = samples_of(model)
        config = SFTConfig(learning_rate=5e-3, epochs=4, row_tokens=512, batch_tokens=512, validate_every=2, lora=lora,
                           interpolation=share)  # fmt: skip
        report = train_sft(
            model, samples[:16], samples[16:], config, folder, EventLog(folder / "events.jsonl")
        )
        return {n: p.detach().clone() for n, p in model.decoder.named_parameters()}, report

    start = dict(tiny_model().decoder.named_parameters())
    (end, whole), (middle, part) = trained(1.0), trained(0.6)
    assert any(not torch.equal(end[name], start[name]) for name in start)
    for name, weight in middle.items():
        torch.testing.assert_close(
            weight, torch.lerp(start[name].detach(), end[name], 0.6), atol=1e-6, rtol=1e-5
        )
    assert whole.loss == whole.best_loss == part.best_loss < part.loss < part.first_loss


def test_frozen_blocks_stay_and_what_is_above_them_gets_the_same_gradients(tmp_path: Path) -> None:
    gradients = []
    for frozen in (0, 1):
        model = tiny_model()
        stage = SFT(model.decoder, *[samples_of(model)] * 2, SFTConfig(), tmp_path)
        choose_trained(model.decoder, frozen)
        learner = learner_for(model)
        learner.gradients([samples_of(model)], 100.0, stage.row_loss)
        gradients.append({name: m.grad for name, m in learner.optimizer.masters.items()})
    every, upper = gradients
    assert {name for name in every if "layers.1." in name} | {"model.norm.weight"} == upper.keys()
    assert_equal(upper, {name: every[name] for name in upper})

    model = tiny_model()
    config = SFTConfig(learning_rate=5e-3, epochs=2, row_tokens=512, batch_tokens=512, frozen_blocks=1)
    before = weights(model)
    train_sft(
        model, samples_of(model)[:16], samples_of(model)[16:], config, tmp_path, EventLog(tmp_path / "e")
    )
    after = weights(model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == upper.keys()


def test_a_checkpoint_of_other_trained_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    whole = learner_for(model).optimizer.state()
    choose_trained(model.decoder, 1)
    with pytest.raises(ConfigError, match="Use a new folder"):
        learner_for(model).optimizer.load_state(whole)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_is_trained_above_frozen_blocks(tied: bool, lora: LoRAConfig | None) -> None:
    model = tiny_model(tie_embeddings=tied)
    choose_trained(model.decoder, 1, lora)
    trained = trainable(model.decoder)
    outside = {name for name in trained if "layers.1." not in name}
    own = set() if tied else {"lm_head.weight"}
    assert outside == ({"model.norm.weight"} | own if lora is None else set())
    assert len(trained) > len(outside)
    if lora is None:
        counted = sum(p.numel() for p in trained.values()) - model.config.hidden_size  # the last norm
        assert trained_share(model.config, 1) * model.config.num_parameters() == pytest.approx(
            counted, rel=2e-3
        )


def test_a_network_without_a_block_to_train_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"frozen_blocks is 2, but the model has 2 blocks.*at most 1"):
        choose_trained(tiny_model().decoder, 2)


class Killed(Exception):
    pass


def run_in_pieces(make_stage: Any, folder: Path, kill_after: list[int]) -> Any:
    """Run a stage, killing it after the given numbers of steps, every time with a fresh stage and model."""
    for limit in [*kill_after, 10**9]:
        stage = make_stage(folder)
        left = limit

        def on_step(_: int, __: int, ___: dict[str, float]) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        try:
            fit(stage, folder, EventLog(folder / "events.jsonl"), checkpoint_seconds=0, on_step=on_step)
            return stage
        except Killed:
            continue
    raise AssertionError("never finished")


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sft_killed_and_resumed_is_bit_equal(dtype: torch.dtype, frozen: int, tmp_path: Path) -> None:
    def make_stage(folder: Path) -> SFT:
        model = tiny_model(dtype=dtype)
        choose_trained(model.decoder, frozen)
        samples = samples_of(model)
        config = SFTConfig(epochs=3, row_tokens=128, batch_tokens=256, validate_every=3, learning_rate=1e-3)
        return SFT(model.decoder, samples[:16], samples[16:], config, folder)

    whole = run_in_pieces(make_stage, tmp_path / "whole", [])
    pieces = run_in_pieces(make_stage, tmp_path / "pieces", [1, 2, 3])
    assert_equal(whole.learner.optimizer.state(), pieces.learner.optimizer.state())
    assert whole.best.state() == pieces.best.state()
    assert_equal(*({n: p.detach() for n, p in s.decoder.named_parameters()} for s in (whole, pieces)))


def rankings(model: LoadedModel) -> list[RankedIds]:
    """Answers that hold the word "good" rank first, "bad" last, others tie between."""
    encode, end = model.tokenizer.encode, model.tokenizer.eos_id
    made = []
    for i in range(24):
        prompt = model.tokenizer.render_prompt([user(f"question {i} about {WORDS[i % 10]}")])
        texts = [f"good {WORDS[i % 7]}", f"some {WORDS[i % 5]}", f"any {WORDS[i % 3]}", f"bad {WORDS[i % 4]}"]
        made.append(RankedIds(prompt, [[*encode(t), end] for t in texts], [1, 2, 2, 3]))
    return made


@pytest.mark.parametrize(("loss", "frozen"), [("pairs", 0), ("plackett-luce", 0), ("pairs", 1)])
def test_reward_model_learns_a_ranking(loss: str, frozen: int, tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model)
    scorer, data = Scorer(model.decoder, model.tokenizer), rankings(model)
    config = RewardModelConfig(loss=loss, learning_rate=2e-3, head_learning_rate=1e-2, epochs=12, row_tokens=400,
                               batch_tokens=800, max_tokens=10**6, frozen_blocks=frozen)  # fmt: skip
    report = train_reward_model(
        scorer, data[:18], data[18:], config, tmp_path / "rm", EventLog(tmp_path / "e")
    )
    stage = RewardModelStage(scorer, data[:18], data[18:], config, tmp_path / "other")
    assert report.best_loss < report.first_loss
    assert stage.validate()["validation_pair_accuracy"] == 1.0
    moved = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert any("layers.0." in name for name in moved) == (frozen == 0)


def test_packed_rankings_give_the_loss_of_separate_ones(tmp_path: Path) -> None:
    model = tiny_model()
    scorer, data = Scorer(model.decoder, model.tokenizer), rankings(model)[:5]
    torch.nn.init.normal_(scorer.head.weight)
    stage = RewardModelStage(scorer, data, data, RewardModelConfig(), tmp_path)
    together = stage.row_loss(scorer, data)
    apart = sum(stage.row_loss(scorer, [ranking]).total.item() for ranking in data)
    assert together.total.item() == pytest.approx(apart, rel=1e-5) and together.count == 5


def test_reward_model_killed_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    def make_stage(folder: Path) -> RewardModelStage:
        model = tiny_model()
        data = rankings(model)
        config = RewardModelConfig(epochs=2, row_tokens=400, batch_tokens=600, validate_every=2)
        return RewardModelStage(Scorer(model.decoder, model.tokenizer), data[:18], data[18:], config, folder)

    whole = run_in_pieces(make_stage, tmp_path / "whole", [])
    pieces = run_in_pieces(make_stage, tmp_path / "pieces", [2, 1])
    assert_equal(whole.learner.optimizer.state(), pieces.learner.optimizer.state())
    heads = [stage.learner.networks[0].head.weight for stage in (whole, pieces)]
    assert torch.equal(*heads) and heads[0].any()


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    samples = samples_of(model)
    with pytest.raises(DataError, match=r"longer than a row may be \(16 tokens\)"):
        train_sft(model, samples, samples, SFTConfig(row_tokens=16), tmp_path, EventLog(tmp_path / "e"))
    with pytest.raises(DataError, match="no samples to train on"):
        train_sft(model, [], samples, SFTConfig(), tmp_path, EventLog(tmp_path / "e"))
    with pytest.raises(DataError, match="20 samples are too few to keep some apart"):
        train_sft(model, samples, [], SFTConfig(), tmp_path, EventLog(tmp_path / "e"))
    same = [RankedIds(r.prompt, r.completions, [1, 1, 1, 1]) for r in rankings(model)]
    scorer = Scorer(model.decoder, model.tokenizer)
    with pytest.raises(DataError, match=r"24 rankings for training.*nothing to learn from"):
        train_reward_model(scorer, same, same, RewardModelConfig(), tmp_path, EventLog(tmp_path / "e"))

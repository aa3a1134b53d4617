"""Scores predicted by an ensemble: what it knows, what it doubts, and what it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.compute.workers import Workers
from nestling.errors import DataError, ModelError
from nestling.generation.best_of import BestOf, chosen, variants
from nestling.generation.protocol import Completion, Request, Sampling
from nestling.generation.side_by_side import SideBySide
from nestling.rewards.predictor import Predictor, answer_features, fit_predictor
from nestling.rewards.terms import Attempt, PeopleScore
from nestling.training.ppo import PPOConfig, reward_mix
from test_text_support import user
from tiny import tiny_model


def world(count: int, seed: int, noise: float = 0.1, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Features, and scores that hang on the first two of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator)
    y = 0.5 + 0.3 * x[:, 0] - 0.2 * x[:, 1] + noise * torch.randn(count, generator=generator)
    return x, y


def test_what_scores_hang_on_is_found() -> None:
    predictor = fit_predictor(*world(400, 0))
    x, y = world(200, 1, noise=0)
    mean, _ = predictor.predict(x)
    assert torch.corrcoef(torch.stack([mean, y.double()]))[0, 1] > 0.98
    assert float((mean - y).abs().mean()) < 0.06


def test_more_scores_leave_less_doubt_and_let_merit_grow() -> None:
    x, _ = world(100, 9)
    doubts, merits = [], []
    for count in (12, 60, 400):
        predictor = fit_predictor(*world(count, 3))
        doubts.append(float(predictor.predict(x)[1].mean()))
        merits.append(float(predictor.merit(x).abs().mean()))
    assert doubts[0] > doubts[1] > doubts[2] and merits[0] < merits[2]


def test_far_from_what_was_scored_little_is_claimed() -> None:
    predictor = fit_predictor(*world(60, 4))
    near, far = world(100, 5)[0], 20 * world(100, 5)[0]
    shrunk = lambda x: float((predictor.merit(x) / (predictor.predict(x)[0] - predictor.usual)).abs().mean())
    assert shrunk(far) < 0.2 * shrunk(near)


def test_noise_alone_promises_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(80, 40, generator=generator), torch.rand(80, generator=generator)
    merit = fit_predictor(x, y).merit(torch.randn(100, 40, generator=generator))
    assert float(merit.abs().mean()) < 0.25 * float(y.std())


def test_what_counts_nothing_changes_nothing() -> None:
    x, y = world(100, 6)
    liar_x, liar_y = world(50, 7)
    weights = torch.cat([torch.ones(100), torch.zeros(50)])
    both = fit_predictor(torch.cat([x, liar_x]), torch.cat([y, 1 - liar_y]), weights)
    probe, truth = world(100, 8, noise=0)
    assert torch.corrcoef(torch.stack([both.predict(probe)[0], truth.double()]))[0, 1] > 0.95


def test_it_survives_a_file_and_damage_is_named(tmp_path: Path) -> None:
    predictor = fit_predictor(*world(40, 1))
    assert Predictor.load(tmp_path) is None
    predictor.save(tmp_path)
    again = Predictor.load(tmp_path)
    x = world(5, 2)[0]
    assert again is not None and torch.equal(again.merit(x), predictor.merit(x))
    (tmp_path / "predictor.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="predictor cannot be read"):
        Predictor.load(tmp_path)


def test_too_little_is_refused() -> None:
    for count, score in ((5, None), (30, 0.5)):
        x, y = world(count, 1)
        with pytest.raises(DataError, match="predict nothing"):
            fit_predictor(x, y if score is None else torch.full((count,), score))


def test_features_are_those_of_each_answer_alone() -> None:
    model = tiny_model()
    prompts = [model.tokenizer.render_prompt([user(f"question {n}")]) for n in range(3)]
    answers = [[model.tokenizer.encode(f"answer {n} {k}") for k in range(2 + n)] for n in range(3)]
    together = answer_features(model.decoder, list(zip(prompts, answers, strict=True)), row_tokens=64)
    apart = torch.cat(
        [
            answer_features(model.decoder, [(p, [a])])
            for p, some in zip(prompts, answers, strict=True)
            for a in some
        ]
    )
    assert together.shape == (9, model.config.hidden_size)
    assert torch.allclose(together, apart, atol=1e-5)


def test_best_of_gives_what_is_judged_best_and_never_a_cut_answer() -> None:
    def answer(text: str, finish: str = "stop") -> Completion:
        return Completion(text, finish, 1, 1, tuple(text.encode()), (), (1, 2))  # type: ignore[arg-type]

    longest = lambda prompt, answers: [float(len(a)) for a in answers]
    assert chosen([answer("a"), answer("abc"), answer("ab")], longest).text == "abc"
    assert chosen([answer("a"), answer("abc", "length"), answer("ab")], longest).text == "ab"
    assert chosen([answer("ab"), answer("cd")], longest).text == "ab"  # no better: what was asked for
    assert chosen([answer("a", "length"), answer("bc", "length")], longest).text == "bc"  # none has ended
    most_cut = [answer("a"), answer("bc", "length"), answer("abc", "length")]
    assert chosen(most_cut, longest).text == "abc"  # to end within the limit is no merit then
    assert chosen([answer(""), answer("", "length")], longest).text == ""


def test_best_of_one_engine_says_what_people_would_like() -> None:
    """Scores prefer short answers; of eight samples a short one comes out, and the same every time."""
    model = tiny_model()
    engine = SideBySide(model, Workers(), max_batch=8)
    request = Request([user("question")], Sampling(temperature=1.0, max_tokens=12, seed=5))
    short = lambda prompt, answers: [-float(len(a)) for a in answers]
    best = BestOf(engine, short, 8)
    [given], [again] = best.generate([request]), best.generate([request])
    all_of = engine.generate([replace(request, sampling=s) for s in variants(request.sampling, 8)])
    ended = [c for c in all_of if c.finished]
    ended = ended if 2 * len(ended) >= len(all_of) else all_of
    assert given == again == min(ended, key=lambda c: len(c.token_ids))
    [chunk] = best.stream(request)
    assert chunk.completion == given
    assert variants(Sampling(temperature=0.0), 3)[1].temperature > 0


def test_in_ppo_it_is_a_capped_term_of_its_own() -> None:
    model = tiny_model()
    prompt = tuple(model.tokenizer.render_prompt([user("question")]))
    texts = [f"answer {n}" for n in range(12)]
    done = [Completion(t, "stop", 3, 2, tuple(model.tokenizer.encode(t)), (), prompt) for t in texts]
    features = answer_features(model.decoder, [(prompt, [c.token_ids for c in done])])
    predictor = fit_predictor(features, torch.tensor([float(n % 2) for n in range(12)]))
    attempts = [Attempt([user("question")], c, None) for c in done]
    term = PeopleScore(model.decoder, predictor, cap=0.1)
    worth = term(attempts)
    assert max(map(abs, worth)) <= 0.1 and worth[1] > worth[0]
    mix = reward_mix(PPOConfig(people_weight=2.0, check_weight=0), None, people=term)
    totals, terms = mix(attempts)
    assert terms["people"] == worth and totals[1] - totals[0] == pytest.approx(2 * (worth[1] - worth[0]))
    assert "people" not in reward_mix(PPOConfig(), None, people=term)(attempts)[1]

"""From curriculum to results with a real small engine: what is asked, what counts, resuming after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nestling.checks import Answer
from nestling.data.curriculum import Curriculum, load
from nestling.errors import ConfigError, DataError, ModelError
from nestling.evaluation import answers
from nestling.evaluation.answers import GREEDY, ask, folder_identity
from nestling.evaluation.evaluate import evaluate
from nestling.evaluation.measures import measures_of
from nestling.evaluation.perplexity import Passage, log_ratio, passage_losses, perplexity
from nestling.evaluation.results import Results
from nestling.evaluation.suite import DIRECT_FACTS, Suite, build_suite, direct_question_of
from nestling.evaluation.verdicts import judge_answers, known_questions
from nestling.generation.engine import Engine
from nestling.generation.protocol import Sampling
from nestling.model.hf_folder import save_model
from tiny import tiny_model

FACTS = "\n".join(
    f"- {{id: f{i}, entity: e{i}, question: 'What is {i}?', answer: [A{i}], wrong: [B{i}], "
    f"claim_true: '{i} is A{i}', claim_false: '{i} is B{i}'}}"
    for i in range(60)
)
PREMISE = """
behaviour: premise_{kind}
about: premises
pair: premise
table: facts
check: {{name: mentions, any: "{{answer}}"}}
templates:
  train: ["Why is it that {{claim}}?"]
  gate: ["Tell me why {{claim}}.", "How come {{claim}}?"]
  test: ["I know that {{claim}}, but why?"]
slots: {{claim: "{{claim_{kind}}}"}}
"""
RETENTION = """
behaviour: retention
about: general questions
templates:
  gate:
    - {turns: ["Which animal barks?"], check: {name: mentions, any: [dog]}}
    - {turns: ["Which animal meows?"], check: {name: mentions, any: [cat]}}
"""
YES_NO = """
behaviour: yes_no
about: held out
held_out: true
templates:
  gate: [{turns: ["Yes or no: is snow cold?"], check: {name: yes_no, value: "yes"}}]
"""


@pytest.fixture
def curriculum(tmp_path: Path) -> Curriculum:
    folder = tmp_path / "content"
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "facts.yaml").write_text(FACTS)
    for kind in ("true", "false"):
        (folder / f"premise_{kind}.yaml").write_text(PREMISE.format(kind=kind))
    (folder / "retention.yaml").write_text(RETENTION)
    (folder / "yes_no.yaml").write_text(YES_NO)
    return load(folder)


def reply(suite: Suite, texts: dict[str, str]) -> list[Answer]:
    """An answer to every item: ``texts`` by item id or behaviour, else nothing to the point."""
    return [Answer(i.messages, texts.get(i.id) or texts.get(i.behaviour) or "Hm.") for i in suite.items]


class TestSuite:
    def test_sizes_twins_and_direct_questions(self, curriculum: Curriculum) -> None:
        sizes = {"premise_false": 10, "premise_true": 10}
        suite = build_suite("gate", sizes=sizes, curriculum=curriculum)
        counts = {
            n: sum(i.behaviour == n for i in suite.items) for n in (*curriculum.behaviours, DIRECT_FACTS)
        }
        assert counts["premise_false"] == counts["premise_true"] == 10
        assert counts["retention"] == 2
        false, true = (
            [i.pair for i in suite.items if i.behaviour == f"premise_{k}"] for k in ("false", "true")
        )
        assert false == true
        asked = {i.id: i for i in suite.items if i.behaviour == DIRECT_FACTS}
        assert all(direct_question_of(i.id) in asked for i in suite.items if i.behaviour == "premise_false")
        assert all(i.split == "gate" and i.check["name"] == "mentions" for i in asked.values())
        assert suite.held_out == {"yes_no"}

    def test_hash_is_stable_and_sees_every_change(self, curriculum: Curriculum) -> None:
        suite = build_suite("gate", curriculum=curriculum)
        assert suite.hash == build_suite("gate", curriculum=curriculum).hash
        others = [
            build_suite("gate", seed=1, curriculum=curriculum),
            build_suite("test", curriculum=curriculum),
            build_suite("gate", assistant="Pip", curriculum=curriculum),
            build_suite("gate", sizes={"premise_true": 3}, curriculum=curriculum),
        ]
        assert len({suite.hash, *(other.hash for other in others)}) == 5

    def test_packaged_content_asks_enough_on_the_test_split(self) -> None:
        suite, content = build_suite("test"), load()
        for name in content.behaviours:
            asked = sum(item.behaviour == name for item in suite.items)
            if content.rows(name) is None:
                assert asked == len(content.templates[name]["test"])
            else:
                assert asked >= 300, name

    def test_training_split_and_unknown_behaviours_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="train"):
            build_suite("train")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="nonsense"):
            build_suite("gate", behaviours=["nonsense"])


class TestVerdicts:
    def test_premises_count_where_the_base_knows_the_fact_and_general_questions_always(
        self, curriculum: Curriculum
    ) -> None:
        suite = build_suite("gate", curriculum=curriculum)
        facts = [i for i in suite.items if i.behaviour == DIRECT_FACTS]
        known = facts[0]
        base = judge_answers(suite, reply(suite, {known.id: known.check["any"][0], "retention": "A dog."}))
        assert known_questions(base) == {known.id}
        counted = [r for r in base if r.behaviour == "premise_false" and r.counts]
        assert counted and all(direct_question_of(r.item) == known.id for r in counted)

        later = judge_answers(suite, reply(suite, {"retention": "A cat."}), known_questions(base))
        assert [r.counts for r in later] == [r.counts for r in base]
        retention = next(m for m in measures_of(later, []) if m.name == "retention")
        asked = retention.select(base)
        assert len(asked) == 2 + len(facts)
        assert [r.item for r in retention.select(later)] == [r.item for r in asked]
        assert {r.messages[0]["content"] for r in asked if r.passed} == {
            "Which animal barks?",
            known.messages[0]["content"],
        }

    def test_loops_and_ends_count_over_all_answers(self, curriculum: Curriculum) -> None:
        suite = build_suite("gate", behaviours=["retention", "yes_no"], curriculum=curriculum)
        texts = ["a dog a dog a dog a dog a dog a dog a dog", "A cat.", "Yes."]
        finished = [True, False, True]
        answers = [Answer(i.messages, t, f) for i, t, f in zip(suite.items, texts, finished, strict=True)]
        rows = judge_answers(suite, answers)
        assert [r.no_loop for r in rows] == [False, False, True]
        assert [r.finished for r in rows] == finished


SHORT = Sampling(temperature=0.0, max_tokens=8)


class TestAnswers:
    def test_come_from_the_cache_the_second_time(self, curriculum: Curriculum, tmp_path: Path) -> None:
        suite = build_suite("gate", sizes={"premise_false": 70, "premise_true": 3}, curriculum=curriculum)
        engine, seen = Engine(tiny_model()), []
        first = ask(
            engine,
            suite.items,
            identity="a",
            cache=tmp_path / "c",
            sampling=SHORT,
            progress=lambda *p: seen.append(p),
        )
        assert seen[-1] == (len(suite.items), len(suite.items))
        assert [done for done, _ in seen[:-1]] == list(range(32, len(suite.items), 32))
        other = Engine(tiny_model(seed=1))
        assert ask(other, suite.items, identity="a", cache=tmp_path / "c", sampling=SHORT) == first
        assert ask(other, suite.items, identity="b", cache=tmp_path / "c", sampling=SHORT) != first

    def test_killed_and_resumed_gives_the_same_answers(
        self, curriculum: Curriculum, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(answers, "CHUNK", 64)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from tiny import tiny_model\n"
            "from nestling.data.curriculum import load\n"
            "from nestling.evaluation import answers\n"
            "answers.CHUNK = 64\n"
            "from nestling.evaluation.suite import build_suite\n"
            "from nestling.generation.engine import Engine\n"
            "from nestling.generation.protocol import Sampling\n"
            "suite = build_suite('gate', curriculum=load(Path(sys.argv[2])))\n"
            "answers.ask(Engine(tiny_model()), suite.items, identity='m', cache=Path(sys.argv[3]),\n"
            "    sampling=Sampling(temperature=0.0, max_tokens=8))\n"
        )
        cache = tmp_path / "cache"
        arguments = [str(Path(__file__).parent), str(tmp_path / "content"), str(cache)]
        process = subprocess.Popen([sys.executable, "-c", code, *arguments])
        deadline = time.monotonic() + 120
        while not list(cache.rglob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        suite = build_suite("gate", curriculum=curriculum)
        engine = Engine(tiny_model())
        resumed = ask(engine, suite.items, identity="m", cache=cache, sampling=SHORT)
        assert resumed == ask(engine, suite.items, identity="m", cache=tmp_path / "fresh", sampling=SHORT)

    def test_identity_of_a_folder_sees_weights_and_tokenizer_only(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            save_model(tmp_path / name, tiny_model())
        identity = folder_identity(tmp_path / "a")
        assert identity == folder_identity(tmp_path / "b")
        (tmp_path / "b" / "card.json").write_text("{}")
        assert identity == folder_identity(tmp_path / "b")
        for file in ("model.safetensors", "tokenizer.json", "config.json"):
            path = tmp_path / "b" / file
            content = path.read_bytes()
            path.write_bytes(content + b" ")
            assert identity != folder_identity(tmp_path / "b"), file
            path.write_bytes(content)
        with pytest.raises(ModelError, match="no model"):
            folder_identity(tmp_path / "nowhere")


PROSE = (
    Passage(id="a", text="The sea was calm that morning."),
    Passage(id="b", text="Snow fell on the old town."),
)


class TestEvaluate:
    def test_whole_evaluation_is_repeatable_and_survives_a_file(
        self, curriculum: Curriculum, tmp_path: Path
    ) -> None:
        suite = build_suite("gate", sizes={"premise_false": 6, "premise_true": 6}, curriculum=curriculum)
        model = tiny_model()
        measured: dict[str, Any] = {
            "name": "base",
            "identity": "m",
            "model": model,
            "prose": PROSE,
            "sampling": SHORT,
        }
        results = [
            evaluate(Engine(model), suite, cache=tmp_path / folder, **measured)
            for folder in ("one", "one", "two")
        ]
        assert results[0] == results[1] == results[2]
        results[0].save(tmp_path / "results.json")
        loaded = Results.load(tmp_path / "results.json")
        assert loaded == results[0]
        assert loaded.figures["ended"].n == len(suite.items) == len(loaded.rows)
        assert loaded.perplexity == perplexity(passage_losses(model, PROSE))

    def test_base_of_another_suite_is_refused(self, curriculum: Curriculum, tmp_path: Path) -> None:
        suite, other = (
            build_suite("gate", behaviours=[n], curriculum=curriculum) for n in ("retention", "yes_no")
        )
        engine = Engine(tiny_model())
        base = evaluate(engine, suite, name="base", identity="m", cache=tmp_path, sampling=SHORT)
        with pytest.raises(DataError, match="another suite"):
            evaluate(engine, other, name="sft", identity="n", cache=tmp_path, sampling=SHORT, base=base)

    def test_damaged_results_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "r.json").write_text('{"name": 1}')
        with pytest.raises(DataError, match=r"r\.json"):
            Results.load(tmp_path / "r.json")
        with pytest.raises(DataError, match="no results"):
            Results.load(tmp_path / "none.json")


class TestPerplexity:
    def test_equals_the_loss_of_transformers(self, tmp_path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        model = tiny_model()
        save_model(tmp_path, model)
        other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        ids = torch.tensor([model.tokenizer.encode(PROSE[0].text)])
        with torch.no_grad():
            wanted = other(ids, labels=ids).loss.item()
        loss = passage_losses(model, PROSE[:1])[0]
        assert loss.tokens == ids.shape[1] - 1
        assert loss.nll / loss.tokens == pytest.approx(wanted, rel=1e-5)

    def test_longer_than_the_context_is_read_in_windows(self) -> None:
        model = tiny_model(context_length=8)
        tokens = len(model.tokenizer.encode(PROSE[0].text))
        windows = -(-tokens // 8)
        assert tokens > 8
        assert passage_losses(model, PROSE[:1])[0].tokens == tokens - windows

    def test_ratio_needs_the_same_passages(self) -> None:
        losses = passage_losses(tiny_model(), PROSE)
        assert log_ratio(losses, losses).interval() == (0, 0)
        with pytest.raises(DataError, match="same passages"):
            log_ratio(losses, losses[:1])


def test_greedy_is_greedy() -> None:
    assert GREEDY.temperature == 0 and GREEDY.max_tokens == 96

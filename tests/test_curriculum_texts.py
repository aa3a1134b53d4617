"""The texts beside the behaviours: replay prompts, prose, and the questions that measure retention."""

from __future__ import annotations

from collections import Counter

import yaml

from nestling.checks.words import find_phrase, words
from nestling.data.curriculum import items, load
from nestling.data.curriculum.schema import CONTENT
from nestling.evaluation.perplexity import load_passages


def normalised(text: str) -> str:
    return " ".join(words(text))


def replay_prompts() -> list[str]:
    return yaml.safe_load((CONTENT / "replay.yaml").read_text(encoding="utf-8"))["prompts"]


def test_replay_repeats_nothing_and_asks_no_gate_or_test_prompt() -> None:
    prompts = Counter(map(normalised, replay_prompts()))
    assert len(prompts) >= 400
    assert prompts.total() == len(prompts)
    measured = {normalised(i.messages[-1]["content"]) for split in ("gate", "test") for i in items(split, 0)}
    assert not measured & set(prompts)


def test_retention_asks_no_fact_that_another_behaviour_teaches() -> None:
    asked = [i for split in ("gate", "test") for i in items(split, 0, ["retention"])]
    questions = {normalised(i.messages[-1]["content"]) for i in asked}
    assert len(questions) == len(asked)
    taught = {normalised(str(row.__pydantic_extra__["question"])) for row in load().tables["facts"]}
    assert not questions & taught
    gives_itself_away = [i.id for i in asked if find_phrase(i.messages[-1]["content"], i.check["any"])]
    assert not gives_itself_away


def test_prose_has_sixty_passages_of_like_length_a_split() -> None:
    gate, test = load_passages("gate"), load_passages("test")
    assert len(gate) == len(test) == 60
    assert len({p.id for p in gate + test}) == 120
    assert all(120 <= len(p.text.split()) <= 200 and p.source for p in gate + test)

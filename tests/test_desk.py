"""The desk: who is given what, when two sit at it at once, and what becomes of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from feedback_support import answers, person, prompt, recorder
from nestling.cli import cli
from nestling.errors import DataError
from nestling.feedback import Recorder
from nestling.feedback.desk import Desk
from nestling.generation.protocol import Completion, Sampling
from nestling.text.messages import Message
from nestling.workflow import desk as laying
from nestling.workspace import Card

__all__ = ["recorder"]
command = importlib.import_module("nestling.cli.desk")  # the package's name of it is the command's


@pytest.fixture
def desk(recorder: Recorder) -> Desk:
    return Desk(recorder.database, overlap=2, seed=1)


def lay(
    desk: Desk, recorder: Recorder, name: str, priority: float = 0.0, gold: list[int] | None = None
) -> list[str]:
    ids = answers(recorder, name, [f"{name} A", f"{name} B", f"{name} C"])
    assert desk.add(name, [dict(m) for m in prompt(name)], ids, priority, gold)
    return ids


def judge(recorder: Recorder, desk: Desk, who: str, ranks: list[int]) -> int:
    task = desk.next_for(person(who))
    assert task is not None
    recorder.record_ranking(
        [answer for answer, _ in task.answers], ranks, client=person(who), desk_item=task.item
    )
    return task.item


def test_what_the_reward_model_is_least_sure_of_comes_first(desk: Desk, recorder: Recorder) -> None:
    for name, priority in (("sure", -3.0), ("unsure", -0.1), ("middle", -1.0)):
        lay(desk, recorder, name, priority)
    task = desk.next_for(person("mira"))
    assert task is not None and task.messages[0]["content"] == "unsure" and task.waiting == 3
    assert sorted(text for _, text in task.answers) == ["unsure A", "unsure B", "unsure C"]


def test_what_one_has_judged_a_second_judges_next_and_a_third_does_not(
    desk: Desk, recorder: Recorder
) -> None:
    lay(desk, recorder, "first", 1.0)
    lay(desk, recorder, "second", 5.0)
    begun = judge(recorder, desk, "mira", [1, 2, 3])
    lay(desk, recorder, "third", 9.0)
    assert judge(recorder, desk, "tom", [1, 3, 2]) == begun  # opinions are to meet
    task = desk.next_for(person("lee"))
    assert task is not None and task.item != begun
    assert desk.next_for(person("mira")) is not None and desk.next_for(person("mira")).item != begun


def test_two_at_once_do_not_both_take_the_last_place(recorder: Recorder) -> None:
    desk = Desk(recorder.database, overlap=1, seed=1)
    lay(desk, recorder, "only")
    assert desk.next_for(person("mira")) is not None
    assert desk.next_for(person("tom")) is None  # she holds it
    assert desk.next_for(person("mira")) is not None  # and finds it again after a reload


def test_what_is_passed_by_does_not_come_again(desk: Desk, recorder: Recorder) -> None:
    lay(desk, recorder, "hard")
    task = desk.next_for(person("mira"))
    assert task is not None
    desk.skip(task.item, person("mira"), "I cannot tell")
    assert desk.next_for(person("mira")) is None and desk.next_for(person("tom")) is not None
    assert [item.skipped for item in desk.status()] == [1]
    with pytest.raises(DataError, match="nothing on the desk with the number 99"):
        desk.skip(99, person("mira"), "no")


def test_agreement_is_measured_whatever_order_answers_were_shown_in(desk: Desk, recorder: Recorder) -> None:
    ids = lay(desk, recorder, "question")
    for who in ("mira", "tom"):
        task = desk.next_for(person(who))
        assert task is not None
        shown = [answer for answer, _ in task.answers]
        ranks = [ids.index(answer) + 1 for answer in shown]
        recorder.record_ranking(shown, ranks, client=person(who), desk_item=task.item)
    assert [item.agreement for item in desk.status()] == [1.0]


def test_gold_looks_like_any_other_and_comes_when_nothing_else_is_left(
    desk: Desk, recorder: Recorder
) -> None:
    lay(desk, recorder, "known", gold=[1, 2, 3])
    task = desk.next_for(person("mira"))
    assert task is not None and not hasattr(task, "gold")
    judge(recorder, desk, "mira", [1, 2, 3])
    assert desk.next_for(person("mira")) is None


def test_what_does_not_lie_there_cannot_be_judged_there(desk: Desk, recorder: Recorder) -> None:
    ids, others = lay(desk, recorder, "here"), lay(desk, recorder, "there")
    item = desk.status()[-1].item
    for said, number in ((others, item), (ids[:2], item), (ids, 99)):
        with pytest.raises(DataError, match="not the answers that lie on the desk"):
            recorder.record_ranking(
                said, list(range(1, len(said) + 1)), client=person("mira"), desk_item=number
            )
    recorder.record_score(ids[0], "5", client=person("mira"), desk_item=item)
    assert [status.judged for status in desk.status()] == [0, 0]  # a score alone ranks nothing


def test_a_ranking_that_was_taken_back_does_not_count(desk: Desk, recorder: Recorder) -> None:
    ids = lay(desk, recorder, "here")
    number = recorder.record_ranking(ids, [1, 2, 3], client=person("mira"), desk_item=1)
    recorder.withdraw(number, person("mira"))
    assert [status.judged for status in desk.status()] == [0]


def test_the_same_is_laid_down_once_and_one_answer_cannot_be_judged(desk: Desk, recorder: Recorder) -> None:
    ids = lay(desk, recorder, "twice")
    assert not desk.add("twice", [dict(m) for m in prompt("twice")], ids)
    with pytest.raises(DataError, match="cannot be judged"):
        desk.add("one", [], ids[:1])
    with pytest.raises(DataError, match="cannot be judged"):
        desk.add("gold", [], ids, gold=[1])


# What is laid there -----------------------------------------------------------------------------------------------


def asked(recorder: Recorder, text: str, who: str | None = None) -> str:
    client = person(who) if who else None
    return recorder.record_generation(
        "v1-base", prompt(text), Sampling(), Completion("A", "stop", 1, 1), client=client
    )


def test_what_is_taken_from_chats_is_of_nobody_who_wants_to_be_forgotten(
    desk: Desk, recorder: Recorder, tmp_path: Path
) -> None:
    for text, who in (("Hers", "mira"), ("His", "tom"), ("Nobody's", None), ("His", "tom")):
        asked(recorder, text, who)
    recorder.record_foreign_answers({"import-1": ("imported:x", prompt("Theirs"), "A", True)})
    (tmp_path / "gold.jsonl").write_text(
        json.dumps({"prompt": "Gold", "completions": ["A", "B"], "ranks": [1, 2]})
    )
    laying.lay_gold(desk, recorder, tmp_path / "gold.jsonl")
    found = lambda: [messages[0]["content"] for messages in laying.recent_prompts(recorder.database, 9)]
    assert found() == ["His", "Nobody's", "Hers"]
    recorder.withdraw_person(person("mira"))
    assert found() == ["His", "Nobody's"]


def test_chats_are_laid_before_others_only_where_that_is_said(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def fill(
        bench: object, desk: object, recorder: object, prompts: list[list[Message]], *rest: object
    ) -> int:
        seen.append([messages[-1]["content"] for messages in prompts])
        return len(prompts)

    monkeypatch.setattr(laying, "fill", fill)
    monkeypatch.setattr(command, "find_version", lambda *_, **__: SimpleNamespace(card=Card(kind="base")))
    monkeypatch.setattr(command, "choose_hardware", lambda *_: SimpleNamespace(arithmetic="x"))
    monkeypatch.setattr(command.Bench, "open", lambda *_: None)
    call = lambda *more: CliRunner().invoke(
        cli,
        [
            "desk",
            "fill",
            *more,
            "-w",
            str(tmp_path),
            "--database",
            str(recorder.database.engine.url.database),
        ],
    )
    assert "nobody has asked anything" in str(call("--from-chats").exception)
    asked(recorder, "a secret")
    assert call("--count", "3").exit_code == 0 and call("--from-chats").exit_code == 0
    assert len(seen[0]) == 3 and "a secret" not in seen[0] and seen[1] == ["a secret"]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "A", "rejected": "B"}))
    assert "two sources" in str(call("--from-chats", "--prompts", str(tmp_path / "p.jsonl")).exception)

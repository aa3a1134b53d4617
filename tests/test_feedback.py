"""Judgments in, datasets out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from nestling.cli import cli
from nestling.errors import DataError, WorkspaceError
from nestling.feedback import (
    Recorder,
    demonstration_rows,
    export,
    preference_rows,
    ranking_rows,
    scalar_rows,
)
from nestling.feedback.export import bad_rows
from nestling.generation.protocol import Completion, Sampling
from nestling.storage import ChatSession, Generation, open_database
from nestling.text.messages import Message
from nestling.workflow.materials import ranked_ids
from nestling.workflow.stages import stored_rankings
from tiny import tiny_model

PROMPT: list[Message] = [{"role": "user", "content": "Hi — 你好"}]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    database = open_database(tmp_path / "feedback.sqlite")
    yield Recorder(database)
    database.close()


def answer(
    recorder: Recorder, text: str, prompt: list[Message] = PROMPT, version: str = "v1-base",
    stop: tuple[str, ...] = (),
) -> str:  # fmt: skip
    sampling = Sampling(temperature=0.3, seed=7, stop=stop)
    return recorder.record_generation(
        version, prompt, sampling, Completion(text, "stop", 5, 2), client="mira"
    )


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_generation_keeps_what_gives_it_again(recorder: Recorder) -> None:
    answer(recorder, "Hello")
    with recorder.database.read() as session:
        row = session.scalars(select(Generation)).one()
        assert (row.version, row.messages, row.answer) == ("v1-base", PROMPT, "Hello")
        assert row.seed == 7 and row.sampling["temperature"] == 0.3 and "seed" not in row.sampling
        assert (row.finish_reason, row.prompt_tokens, row.completion_tokens) == ("stop", 5, 2)
        assert row.conversation_id == row.id and row.session_id == "mira"
        assert [s.id for s in session.scalars(select(ChatSession))] == ["mira"]


def test_the_newest_thumb_of_a_person_counts(recorder: Recorder) -> None:
    liked, disliked, taken_back = (answer(recorder, text) for text in ("A", "B", "C"))
    for generation_id, value, client in [
        (liked, "down", "mira"),
        (liked, "up", "mira"),
        (disliked, "down", "mira"),
        (disliked, "up", "tom"),
        (taken_back, "up", "mira"),
        (taken_back, "none", "mira"),
    ]:
        recorder.record_thumb(generation_id, value, client=client)  # type: ignore[arg-type]
    rows = list(scalar_rows(recorder.database))
    assert [(row["completion"], row["label"], row["session"]) for row in rows] == [
        (said("A"), True, "mira"),
        (said("B"), False, "mira"),
        (said("B"), True, "tom"),
    ]
    assert rows[0]["prompt"] == PROMPT and rows[0]["versions"] == ["v1-base"]


def test_votes_become_rankings_preferences_and_labels(recorder: Recorder) -> None:
    a, b, c = answer(recorder, "A"), answer(recorder, "B", version="v2-sft"), answer(recorder, "C")
    recorder.record_comparison(a, b, "a", client="mira")
    recorder.record_comparison(b, a, "a", client="mira", reason="clearer")  # sides swapped, mind changed
    recorder.record_comparison(a, c, "tie", client="mira")
    recorder.record_comparison(b, c, "both_bad", client="mira")
    assert [(row["completions"], row["ranks"]) for row in ranking_rows(recorder.database)] == [
        ([said("B"), said("A")], [1, 2]),
        ([said("A"), said("C")], [1, 1]),
    ]
    assert all(row["finished"] == [True, True] for row in ranking_rows(recorder.database))
    (preference,) = preference_rows(recorder.database)
    assert (preference["prompt"], preference["chosen"], preference["rejected"]) == (
        PROMPT,
        said("B"),
        said("A"),
    )
    assert preference["versions"] == ["v2-sft", "v1-base"] and preference["reason"] == "clearer"
    assert [(r["completion"], r["label"]) for r in scalar_rows(recorder.database)] == [
        (said("B"), False),
        (said("C"), False),
    ]


def test_answers_that_did_not_end_by_themselves_say_so_in_every_row(recorder: Recorder) -> None:
    """An answer that was cut, or ended at words the asker had named, must not teach where to end."""
    whole, named = answer(recorder, "A"), answer(recorder, "B", stop=("x",))
    cut = recorder.record_generation("v1-base", PROMPT, Sampling(), Completion("C", "length", 5, 2))
    ids = [whole, named, cut]
    recorder.record_ranking(ids, [1, 2, 3], all_bad=True, client="mira")
    for answer_ in ids:
        recorder.record_thumb(answer_, "up", client="tom")
    [row] = ranking_rows(recorder.database)
    assert row["finished"] == [True, False, False] and row["all_bad"]
    for rows in (list(scalar_rows(recorder.database)), list(bad_rows(recorder.database))):
        told = {row["completion"][0]["content"]: row["finished"] for row in rows}
        assert told == {"A": True, "B": False, "C": False}


def test_rankings_become_rows_and_pairs(recorder: Recorder) -> None:
    a, b, c = answer(recorder, "A"), answer(recorder, "B", version="v2-sft"), answer(recorder, "C")
    recorder.record_ranking([a, b, c], [1, 2, 3], client="mira")
    recorder.record_ranking([c, a, b], [2, 1, 2], client="mira", reason="closer")  # mind changed
    recorder.record_ranking([a, b, c], [3, 2, 1], all_bad=True, client="tom")
    rows = list(ranking_rows(recorder.database))
    assert [(row["completions"], row["ranks"]) for row in rows] == [
        ([said("C"), said("A"), said("B")], [2, 1, 2]),
        ([said("A"), said("B"), said("C")], [3, 2, 1]),
    ]
    assert rows[0]["versions"] == ["v1-base", "v1-base", "v2-sft"] and rows[0]["reason"] == "closer"
    pairs = [(row["chosen"], row["rejected"], row["versions"]) for row in preference_rows(recorder.database)]
    assert pairs == [
        (said("A"), said("C"), ["v1-base", "v1-base"]),
        (said("A"), said("B"), ["v1-base", "v2-sft"]),
        (said("C"), said("B"), ["v1-base", "v2-sft"]),
        (said("C"), said("A"), ["v1-base", "v1-base"]),
        (said("B"), said("A"), ["v2-sft", "v1-base"]),
    ]
    labels = [(row["completion"], row["label"]) for row in scalar_rows(recorder.database)]
    assert labels == [(said("A"), False), (said("B"), False), (said("C"), False)]


def test_a_better_answer_is_ranked_above_and_demonstrated(recorder: Recorder) -> None:
    a = answer(recorder, "A")
    recorder.record_rewrite(a, "B", client="mira")
    recorder.record_rewrite(a, " C \n", client="mira")  # mind changed
    (row,) = ranking_rows(recorder.database)
    assert (row["completions"], row["ranks"], row["finished"]) == (
        [said("C"), said("A")],
        [1, 2],
        [True, True],
    )
    assert row["versions"] == [None, "v1-base"]
    (demonstration,) = demonstration_rows(recorder.database)
    assert demonstration["messages"] == [*PROMPT, *said("C")]
    (label,) = scalar_rows(recorder.database)
    assert (label["completion"], label["label"]) == (said("C"), True)
    with pytest.raises(DataError, match="nothing was changed"):
        recorder.record_rewrite(a, "A ")


def test_export_writes_over_nothing(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "preferences.jsonl").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"preferences\.jsonl: this exists already"):
        export(recorder.database, tmp_path)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["preferences.jsonl"]
    assert (tmp_path / "preferences.jsonl").read_text() == "mine"


def test_export_writes_jsonl(recorder: Recorder, tmp_path: Path) -> None:
    a, b = answer(recorder, "A\n中\u2028"), answer(recorder, "B")
    recorder.record_comparison(a, b, "b")
    recorder.record_thumb(a, "down")
    folder = tmp_path / "export"
    assert export(recorder.database, folder) == {
        "rankings.jsonl": 1,
        "preferences.jsonl": 1,
        "openai-preferences.jsonl": 1,
        "feedback.jsonl": 1,
        "scores.jsonl": 1,
        "demonstrations.jsonl": 0,
    }
    (line,) = (folder / "feedback.jsonl").read_text().strip("\n").split("\n")
    assert json.loads(line)["completion"] == said("A\n中\u2028")


def test_impossible_judgments_are_named(recorder: Recorder) -> None:
    a, other = answer(recorder, "A"), answer(recorder, "B", [{"role": "user", "content": "Bye"}])
    with pytest.raises(DataError, match="no recorded answer 'nope'"):
        recorder.record_thumb("nope", "up")
    with pytest.raises(DataError, match=r"unknown judgment 'great'.*up, down, none"):
        recorder.record_thumb(a, "great")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="same prompt"):
        recorder.record_comparison(a, other, "a")
    with pytest.raises(DataError, match="two different answers"):
        recorder.record_comparison(a, a, "tie")
    for ids, ranks in (([a], [1]), ([a, a], [1, 2]), ([a, other], [1, 2])):
        with pytest.raises(DataError, match="different answers to the same prompt"):
            recorder.record_ranking(ids, ranks)
    for ranks in ([1, 3], [2, 2], [0, 1], [1]):
        with pytest.raises(DataError, match="does not rank 2 answers"):
            recorder.record_ranking([a, other], ranks)
    assert list(scalar_rows(recorder.database)) == []


def test_exported_votes_train_a_reward_model(recorder: Recorder, tmp_path: Path) -> None:
    """From the page's vote to token ids: what the command line does with ``data judgments`` and ``reward-model``."""
    greeted: list[Message] = [{"role": "assistant", "content": "Hello! What is it?"}, *PROMPT]
    a, b = (answer(recorder, text, greeted, v) for text, v in (("A", "v1-base"), ("B", "v2-sft")))
    recorder.record_comparison(a, b, "b", client="mira")
    out = tmp_path / "out"
    command = ["data", "judgments", str(out), "--database", str(tmp_path / "feedback.sqlite")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0 and "rankings.jsonl: 1 rows" in result.output, result.output
    (row,) = stored_rankings(out / "rankings.jsonl")
    tokenizer = tiny_model().tokenizer
    ids = ranked_ids(tokenizer, row)
    assert [tokenizer.decode(c[:-1]) for c in ids.completions] == ["A", "B"] and ids.ranks == [2, 1]
    assert all(c[-1] == tokenizer.eos_id for c in ids.completions)

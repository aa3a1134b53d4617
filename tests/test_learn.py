"""From judgments to a version: the snapshot, the training, the gate, resumption and replay, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from feedback_support import person, prompt
from nestling.bench.chat import serving as served
from nestling.cli import cli
from nestling.data import curriculum
from nestling.errors import DataError, WorkspaceError
from nestling.feedback import Recorder
from nestling.feedback.people import Person
from nestling.feedback.recorder import Winner
from nestling.feedback.snapshot import SnapshotRules, erase, take
from nestling.generation.protocol import Completion, Sampling
from nestling.model.hf_folder import save_model
from nestling.storage import open_database
from nestling.workflow import lessons
from nestling.workflow.learn import Learn
from nestling.workflow.learn_recipe import ACCOUNTS, TRUSTED, LearnRecipe, load_learn_recipe
from nestling.workflow.lineage import lineage, tried_judgments
from nestling.workspace import Card, Workspace
from tiny import tiny_model

WORDS = ["sun", "moon", "star", "tree", "river", "stone", "cloud", "bird", "fish", "leaf"]
BEHAVIOURS = curriculum.load().behaviours
QUICK = [
    "hardware.dtype=float32", "hardware.threads=1", "evaluation.max_new_tokens=4", "gate.margin=0.9",
    "gate.margins={retention: 0.9, perplexity: 9}", "dpo.learning_rate=0.001", "kto.learning_rate=0.001",
    "dpo.max_tokens=20000", "kto.max_tokens=20000", "rank.prompts={refusal: 4, format: 4}", "rank.max_new_tokens=4",
    "reward_model.max_tokens=4000", "ppo.iterations=2", "ppo.prompts=4", "ppo.samples=2", "ppo.frozen_blocks=0",
    "ppo.max_new_tokens=4", "ppo.demonstration_coef=0", "ppo_prompts={refusal: 4}", "rehearsal={}",
    "evaluation.sizes=" + json.dumps(dict.fromkeys(BEHAVIOURS, 1)),
]  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "nest")
    model = tiny_model(context_length=1024)
    workspace.versions.publish(lambda folder: save_model(folder, model), Card(kind="base", state="accepted"))
    workspace.versions.promote("v1-base", "something to learn from")
    return workspace


def people_like(
    workspace: Workspace, better: str, worse: str, people: int = 12, each: int = 4, gold: bool = False,
    who_is: Callable[[str], Person] = person, says: Winner = "a",
) -> None:  # fmt: skip
    """So many people prefer answers with one word to answers with another."""
    from nestling.feedback.desk import Desk

    database = open_database(workspace.database_path)
    recorder = Recorder(database)
    for who in range(people):
        for turn in range(each):
            text = f"question {who} {turn} about {WORDS[(who + turn) % 10]}"
            ids = [
                recorder.record_generation(
                    "v1-base", prompt(text), Sampling(), Completion(said, "stop", 3, 2)
                )
                for said in (f"{better} {WORDS[turn % 10]}", f"{worse} {WORDS[who % 7]}")
            ]
            if gold:
                Desk(database).add(f"gold {who} {turn}", [dict(m) for m in prompt(text)], ids, gold=[1, 2])
            else:
                first, second = ids[::-1] if turn % 2 and each > 19 else ids  # nobody takes one side for ever
                winner: Winner = says if first == ids[0] else "b"
                recorder.record_comparison(
                    first, second, winner, client=who_is(f"{better}{who}"), blinded=True
                )
    database.close()


def learning(workspace: Workspace, method: str, *settings: str) -> Learn:
    recipe = load_learn_recipe(None, [*QUICK, f"method={method}", "snapshot.most_a_minute=1000", *settings])
    database = open_database(workspace.database_path)
    snapshot = take(database, workspace.root / "snapshots", recipe.snapshot, "2026-01-01")
    database.close()
    serving = workspace.versions.serving()
    assert serving is not None
    return Learn(workspace, recipe, snapshot, serving)


def verdict_of(learned: Learn) -> dict[str, Any]:
    return [event for event in learned.events.read()[0] if event["kind"] == "verdict"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_what_people_prefer_is_learnt_and_served(method: str, workspace: Workspace) -> None:
    people_like(workspace, "good", "bad", people=40, each=2)
    learned = learning(workspace, method)
    learned.execute()
    version = workspace.versions.get(f"v2-{method}")
    assert workspace.versions.serving() == version and version.card.state == "accepted"
    assert "people's held-out judgments" in version.card.verdict
    extra = version.card.model_extra or {}
    assert extra["snapshot"] == learned.snapshot.folder.name and extra["people"]["held_out"] > 0
    assert [o.version.name for o in lineage(workspace, version)] == [version.name, "v1-base"]
    assert lineage(workspace, version)[0].replayable
    learned.execute()  # nothing is left to do
    assert workspace.versions.names() == ["v1-base", version.name]
    assert tried_judgments(workspace, load_learn_recipe(None)) == learned.snapshot.manifest.new


@pytest.mark.slow
def test_a_second_step_in_the_same_direction_is_seen_and_a_poisoned_step_back_too(
    workspace: Workspace,
) -> None:
    people_like(workspace, "good", "bad", people=40, each=2)
    learning(workspace, "dpo").execute()
    people_like(workspace, "good", "bad", people=60, each=2)
    second = learning(workspace, "dpo")
    assert second.parent.name == "v2-dpo"
    second.execute()
    card = workspace.versions.get("v3-dpo").card
    gains = {line["name"]: line["gain"] for line in card.metrics["exam"]["lines"]}
    assert card.state == "accepted" and gains["evidence"] > 0.2
    assert abs(gains[TRUSTED]) < 0.2  # since the base both have gone with people
    people_like(workspace, "bad", "good", people=200, each=2)  # liars enough to vouch for each other
    margins = "gate.margins={retention: 0.9, perplexity: 9, earlier judgments: 0.05}"
    third = learning(workspace, "dpo", "dpo.max_tokens=4000", margins)
    third.execute()
    lines = {line["name"]: line for line in workspace.versions.get("v4-dpo").card.metrics["exam"]["lines"]}
    assert lines["evidence"]["passed"] and lines[TRUSTED]["passed"] is False, lines[TRUSTED]
    serving = workspace.versions.serving()
    assert serving is not None and serving.name == "v3-dpo"


@pytest.mark.slow
def test_a_reward_model_and_ppo_learn_it_too(workspace: Workspace) -> None:
    people_like(workspace, "good", "bad", people=6)
    learned = learning(workspace, "ppo")
    learned.execute()
    kinds = [version.card.kind for version in workspace.versions.list()]
    assert kinds == ["base", "reward_model", "ppo"]
    card = workspace.versions.list()[-1].card
    assert (card.model_extra or {})["snapshot"] and card.parents == ["v1-base", "v2-reward-model"]
    assert verdict_of(learned)["sentences"]


@pytest.mark.slow
def test_scores_choose_among_several_answers_at_once(workspace: Workspace) -> None:
    """Nothing is trained: the version answers several times and gives what scores promise to be liked."""
    database = open_database(workspace.database_path)
    recorder = Recorder(database)
    for who in range(40):
        for text, value in (("good sun", "5"), ("bad moon", "1")):
            done = Completion(f"{text} {WORDS[who % 10]}", "stop", 3, 2)
            answer = recorder.record_generation("v1-base", prompt(f"question {who}"), Sampling(), done)
            recorder.record_score(answer, value, client=person(f"p{who}"))  # type: ignore[arg-type]
    database.close()
    people_like(workspace, "good", "bad", people=40, each=1)  # comparisons to be measured by
    learned = learning(workspace, "best-of-n", "best_of=3")
    learned.execute()
    version = workspace.versions.get("v2-best-of-n")
    assert version.card.state == "accepted", verdict_of(learned)["sentences"]
    assert (version.card.model_extra or {})["best_of"] == 3
    base = workspace.versions.get("v1-base")
    assert (version.folder / "model.safetensors").read_bytes() == (
        base.folder / "model.safetensors"
    ).read_bytes()
    with served(workspace, workspace.root / "server.log") as (url, _):
        body = {"model": "nestling", "messages": prompt("question 3"), "seed": 4, "max_tokens": 8}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
        streamed = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=60).text
    text = reply["choices"][0]["message"]["content"]
    pieces = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces if p["choices"]) == text


@pytest.mark.slow
def test_killed_in_training_it_goes_on_to_the_same_weights_and_can_be_replayed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    people_like(workspace, "good", "bad")
    learned = learning(workspace, "dpo", "checkpoint_seconds=0")
    calls = 0

    def dies(self: Any, step: int) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, step)

    from nestling.training.planned import PlannedStage

    original = PlannedStage.step
    monkeypatch.setattr(PlannedStage, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        learned.execute()
    monkeypatch.setattr(PlannedStage, "step", original)
    begun = Learn.unfinished(workspace)
    assert begun is not None and begun.folder == learned.folder
    begun.execute()
    assert Learn.unfinished(workspace) is None
    said = run(workspace, "learn", "--replay", "v2-dpo")
    assert "has the same weights" in said and not (workspace.root / "replays" / "v2-dpo").exists()
    first = learned.snapshot.manifest.judgments["train/rankings"][0]
    erase(workspace.root / "snapshots", [first])
    with pytest.raises(WorkspaceError, match="can no longer be replayed"):
        run(workspace, "learn", "--replay", "v2-dpo")


@pytest.mark.slow
def test_a_poisoned_batch_cannot_vouch_for_itself(workspace: Workspace) -> None:
    people_like(workspace, "good", "bad", people=10, gold=True)
    people_like(workspace, "bad", "good")  # a crowd that says the opposite of what is known
    learned = learning(workspace, "dpo", "gate.margin=0.05")
    learned.execute()
    told = verdict_of(learned)
    assert not told["accepted"] and any(TRUSTED in sentence for sentence in told["sentences"])
    serving = workspace.versions.serving()
    assert serving is not None and serving.name == "v1-base"


@pytest.mark.slow
def test_a_crowd_that_anybody_can_make_up_does_not_outvote_accounts(workspace: Workspace) -> None:
    """The very first batch, with no gold and nothing promoted before."""
    people_like(workspace, "good", "bad", people=16, each=2)
    made_up = lambda name: Person(f"browser:{name}", "browser")
    people_like(workspace, "good", "bad", people=60, each=2, who_is=made_up, says="b")
    learned = learning(workspace, "dpo", "gate.margin=0.05")
    learned.execute()
    told = verdict_of(learned)
    assert not told["accepted"] and any(ACCOUNTS in sentence for sentence in told["sentences"]), told
    wide = load_learn_recipe(None, [f"gate.margins={{{ACCOUNTS}: 0.9}}"])  # the owner may think otherwise
    assert wide.gate.margins[ACCOUNTS] == 0.9


@pytest.mark.slow
def test_an_owner_alone_can_teach_it_too(workspace: Workspace) -> None:
    """Nobody else has judged: it is measured on what they said of other questions."""
    people_like(workspace, "good", "bad", people=1, each=80)
    learned = learning(workspace, "dpo", "snapshot.held_out_share=0.4")
    learned.execute()
    assert learned.snapshot.manifest.split == "prompts"
    assert verdict_of(learned)["accepted"], verdict_of(learned)["sentences"]


def test_one_seed_is_that_of_every_stage_unless_it_has_its_own() -> None:
    recipe = load_learn_recipe(None, ["seed=5", "kto.seed=2"])
    assert (recipe.dpo.seed, recipe.kto.seed, recipe.reward_model.seed, recipe.ppo.seed) == (5, 2, 5, 5)
    kept = LearnRecipe.model_validate(recipe.model_dump(mode="json"))
    assert kept == recipe and load_learn_recipe(None).dpo.seed == 0


def run(workspace: Workspace, *words: str) -> str:
    result = CliRunner(env={"NESTLING_HOME": str(workspace.root), "COLUMNS": "200"}).invoke(
        cli, words, catch_exceptions=False
    )
    return result.output


@pytest.mark.slow
def test_too_little_that_is_new_is_said(workspace: Workspace) -> None:
    people_like(workspace, "good", "bad", people=2, each=3)
    assert "6 new judgments; learning begins at 20" in run(workspace, "learn")
    assert "Snapshot" in run(workspace, "learn", "--dry-run") and workspace.versions.names() == ["v1-base"]


def test_ties_alone_teach_nothing(workspace: Workspace) -> None:
    database = open_database(workspace.database_path)
    recorder = Recorder(database)
    for number in range(12):
        ids = [
            recorder.record_generation(
                "v1-base", prompt(f"q {number}"), Sampling(), Completion(text, "stop", 1, 1)
            )
            for text in ("A", "B")
        ]
        recorder.record_comparison(*ids, "tie", client=person("mira"))
    database.close()
    tried = learning(workspace, "dpo")
    with pytest.raises(DataError, match="Ties alone teach nothing"):
        tried.execute()
    assert Learn.unfinished(workspace) is None  # it is not tried again and again
    assert tried_judgments(workspace, tried.recipe) == tried.snapshot.manifest.new
    for other in ("method=kto", "dpo.max_tokens=123"):  # which may find something in them
        assert not tried_judgments(workspace, load_learn_recipe(None, [*QUICK, other]))


def thumbs(workspace: Workspace, people: int) -> list[int]:
    """Thumbs alone: up for one word, down for another."""
    database = open_database(workspace.database_path)
    recorder = Recorder(database)
    numbers = []
    for number in range(people):
        text = f"{('good', 'bad')[number % 2]} {WORDS[number % 10]}"
        answer = recorder.record_generation(
            "v1-base", prompt(f"q {number}"), Sampling(), Completion(text, "stop", 1, 1)
        )
        value: Any = ("up", "down")[number % 2]
        numbers.append(recorder.record_thumb(answer, value, client=person(f"p{number}")))
    database.close()
    return numbers


def test_thumbs_alone_can_be_tried_but_prove_nothing(workspace: Workspace) -> None:
    thumbs(workspace, 60)
    learned = learning(workspace, "best-of-n")
    learned.execute()
    [verdict] = verdict_of(learned)["sentences"][:1]
    assert learned.finished and "Kept" in verdict, verdict


def test_what_is_taken_back_while_it_is_learnt_from_is_not_published(workspace: Workspace) -> None:
    numbers = thumbs(workspace, 60)
    learned = learning(workspace, "kto")
    erase(workspace.root / "snapshots", numbers[:1])
    with pytest.raises(DataError, match="took judgments back"):
        learned.execute()
    assert workspace.versions.names() == ["v1-base"]
    assert Learn.unfinished(workspace) is None and not tried_judgments(workspace, learned.recipe)


def test_a_learning_whose_parent_is_gone_does_not_stop_the_next(workspace: Workspace) -> None:
    people_like(workspace, "good", "bad", people=2)
    begun = learning(workspace, "dpo")
    begun.folder.mkdir(parents=True)
    kept = {"snapshot": begun.snapshot.folder.name, "parent": "v1-base", "recipe": {"name": "learn"}}
    (begun.folder / "learn.json").write_text(json.dumps(kept))
    [found] = Learn.all(workspace)
    assert found.folder == begun.folder  # whatever the defaults are now
    (begun.folder / "learn.json").write_text(json.dumps(kept | {"parent": "v9-gone"}))
    assert Learn.unfinished(workspace) is None and tried_judgments(workspace, begun.recipe) == set()


def test_of_a_ranking_the_best_are_good_and_the_worst_bad(workspace: Workspace) -> None:
    database = open_database(workspace.database_path)
    recorder = Recorder(database)
    for number in range(40):
        ids = [
            recorder.record_generation(
                "v1-base", prompt(f"q {number}"), Sampling(), Completion(text, "stop", 1, 1)
            )
            for text in ("sun", "moon", "star", "tree")
        ]
        recorder.record_ranking(ids, [2, 1, 3, 1], client=person("mira"))
    database.close()
    learned = learning(workspace, "kto")
    model = learned.bench().load(learned.parent)
    asked = len(learned.snapshot.rows("train", "rankings"))
    labels = lessons.labels(learned.snapshot, model, 0)
    assert (
        len(labels) == 3 * asked > 0 and sum(item.good for item in labels) == 2 * asked
    )  # the second is neither


def test_what_is_called_bad_and_what_people_wrote_is_learnt(workspace: Workspace) -> None:
    database = open_database(workspace.database_path)
    recorder = Recorder(database)
    for number in range(40):
        ask = prompt(f"q {number}")
        ids = [
            recorder.record_generation("v1-base", ask, Sampling(), Completion(text, "stop", 1, 1))
            for text in ("sun", "moon")
        ]
        if number % 4 == 0:
            recorder.record_comparison(*ids, "both_bad", client=person("mira"))
        elif number % 4 == 1:
            recorder.record_ranking(ids, [1, 2], all_bad=True, client=person("mira"))
        elif number % 4 == 2:
            recorder.record_rewrite(ids[0], "star", client=person("mira"))
        else:
            recorder.record_demonstration(ids[0], client=person("mira"))
    database.close()
    learned = learning(workspace, "kto")
    snapshot, model = learned.snapshot, learned.bench().load(learned.parent)
    bad = snapshot.rows("train", "labels")
    ranked = [
        row
        for row in snapshot.rows("train", "rankings")
        if row["judgment"] not in {b["judgment"] for b in bad}
    ]
    alone = len(snapshot.rows("train", "demonstrations")) - len(ranked)  # a rewrite is in both files
    labels = lessons.labels(snapshot, model, 0)
    assert bad and ranked and alone
    assert sum(not item.good for item in labels) == len(bad) + len(ranked)
    assert sum(item.good for item in labels) == len(ranked) + alone
    by_dpo = [lessons.pairs(snapshot, model, written) for written in (False, True)]
    assert len(by_dpo[1]) - len(by_dpo[0]) == alone == sum(not pair.rejected for pair in by_dpo[1])
    said = [[model.tokenizer.decode(ids[:-1]) for ids in (pair.chosen, pair.rejected)] for pair in by_dpo[0]]
    assert said.count(["star", "sun"]) == len(ranked)  # what a person wrote, to what they wrote it for


def test_settings_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(Exception, match="held-out"):
        load_learn_recipe(None, ["rank.prompts={list_count: 3}"])
    with pytest.raises(Exception, match="method"):
        load_learn_recipe(None, ["method=magic"])
    assert isinstance(load_learn_recipe(None), LearnRecipe) and SnapshotRules().most_per_person == 200

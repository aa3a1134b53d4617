"""Who judges, over HTTP: signed identities, accounts, the desk, taking back, and the roll-back of a dud."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nestling.feedback import Recorder, ranking_rows, scalar_rows
from nestling.feedback.desk import Desk
from nestling.feedback.people import Accounts, Person
from nestling.feedback.snapshot import SnapshotRules, take
from nestling.generation.protocol import Completion, Sampling
from nestling.serving.settings import hash_token
from nestling.serving.watch import roll_back_if_worse
from nestling.storage import Database, open_database
from nestling.workspace import Workspace
from serving_support import LiveServer, ask, publish, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, ["Hello", (" there", " you")], kind="base")
    workspace.versions.promote("v1-base", "something to ask")
    with running(workspace) as live:
        yield live.wait()


@pytest.fixture
def database(server: LiveServer) -> Iterator[Database]:
    opened = open_database(server.workspace.database_path)
    yield opened
    opened.close()


def visitor(server: LiveServer) -> httpx.Client:
    """A browser that has asked for its identity."""
    identity = httpx.post(f"{server.url}/api/identity").raise_for_status().json()["identity"]
    return server.client(headers={"X-Nestling-Identity": identity})


def answered(client: httpx.Client) -> str:
    body = {"model": "nestling", "messages": ask()}
    return str(client.post("/v1/chat/completions", json=body).raise_for_status().json()["id"])


def thumb(client: httpx.Client, answer: str, **more: Any) -> int:
    said = client.post(
        "/api/judgments", json={"kind": "thumb", "generation_id": answer, "value": "up", **more}
    )
    return int(said.raise_for_status().json()["id"])


def test_a_signed_identity_counts_and_a_claimed_name_does_not_replace_it(
    server: LiveServer, database: Database
) -> None:
    with visitor(server) as mira, server.client() as anybody:
        me = mira.get("/api/me").json()
        assert me["kind"] == "browser" and anybody.get("/api/me").json()["kind"] is None
        answer = answered(mira)
        thumb(mira, answer, user="somebody else")
        thumb(anybody, answer, user="somebody")
        anybody.headers["X-Nestling-Identity"] = mira.headers["X-Nestling-Identity"][:-1] + "x"
        thumb(anybody, answer, user="forger")
    assert [row["session"] for row in scalar_rows(database)] == [me["id"], "somebody", "forger"]


def test_an_account_is_known_by_its_token_also_where_the_server_wants_none(
    server: LiveServer, database: Database
) -> None:
    token = Accounts(server.workspace).add("tom")
    with server.client(headers={"Authorization": f"Bearer {token}"}) as tom:
        assert tom.get("/api/me").json() == {"id": "account:tom", "kind": "account"}
        thumb(tom, answered(tom))
    assert [row["session"] for row in scalar_rows(database)] == ["account:tom"]


def test_an_accounts_token_opens_a_closed_server(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, ["Hello"], kind="base")
    workspace.versions.promote("v1-base", "something to ask")
    accounts = Accounts(workspace)
    with running(workspace, token_hash=hash_token("a-long-random-token")) as server:
        token = accounts.add("tom")
        status = lambda bearer: (
            httpx.get(f"{server.url}/api/status", headers={"Authorization": bearer}).status_code
        )
        assert status(f"Bearer {token}") == 200 and status("Bearer a-long-random-token") == 200
        assert status(f"Bearer {token}x") == 401 and status(token) == 401 and status("") == 401
        accounts.remove("tom")
        assert status(f"Bearer {token}") == 401


def test_one_takes_back_ones_own_and_nobody_elses(server: LiveServer, database: Database) -> None:
    with visitor(server) as mira, visitor(server) as tom:
        answer = answered(mira)
        number = thumb(mira, answer)
        refused = tom.delete(f"/api/judgments/{number}")
        assert refused.status_code == 404 and "of yours" in refused.json()["error"]["message"]
        snapshot = take(database, server.workspace.root / "snapshots", SnapshotRules(), "2026-01-01")
        assert snapshot.manifest.new == {number}
        assert mira.delete(f"/api/judgments/{number}").json() == {"withdrawn": 1}
        assert snapshot.manifest.erased == [number]
        assert list(scalar_rows(database)) == []
        thumb(tom, answer)
        thumb(tom, answered(tom))
        assert tom.delete("/api/me").json() == {"withdrawn": 2}
        assert list(scalar_rows(database)) == []
    with server.client() as nobody:
        assert nobody.delete("/api/me").status_code == 403


def test_the_desk_gives_asks_and_remembers(server: LiveServer, database: Database) -> None:
    recorder, prompt = Recorder(database), ask("Which is best?")
    ids = [
        recorder.record_generation("v1-base", prompt, Sampling(), Completion(text, "stop", 3, 2))
        for text in ("One.", "Two.", "Three.")
    ]
    assert Desk(database).add("by hand", prompt, ids)
    with server.client() as nobody, visitor(server) as mira, visitor(server) as tom:
        assert nobody.get("/api/desk").status_code == 403
        task = mira.get("/api/desk").raise_for_status().json()
        assert task["waiting"] == 1 and task["messages"] == prompt
        assert sorted(answer["text"] for answer in task["answers"]) == ["One.", "Three.", "Two."]
        assert not any("version" in answer for answer in task["answers"])
        shown = [answer["id"] for answer in task["answers"]]
        judgment = {"kind": "ranking", "answers": shown, "ranks": [1, 2, 3], "desk_item": task["item"]}
        mira.post("/api/judgments", json=judgment).raise_for_status()
        mira.post(
            "/api/judgments",
            json={"kind": "score", "generation_id": shown[0], "value": 5, "desk_item": task["item"]},
        ).raise_for_status()
        assert mira.get("/api/desk").json()["item"] is None
        assert tom.get("/api/desk").json()["item"] == task["item"]
        assert tom.post(f"/api/desk/{task['item']}/skip", json={"reason": "I cannot tell"}).status_code == 200
        assert tom.get("/api/desk").json()["item"] is None
        assert tom.post("/api/desk/99/skip", json={"reason": "no"}).status_code == 400
        said = mira.get("/api/people").json()
        assert said["opinions"] == 3 and said["agreement"] is None and said["arena"] == []
    [row] = ranking_rows(database)
    assert [c[0]["content"] for c in row["completions"]] == [
        ("One.", "Two.", "Three.")[ids.index(answer)] for answer in shown
    ]


def test_comparisons_made_blind_are_known_as_such(server: LiveServer, database: Database) -> None:
    from sqlalchemy import select

    from nestling.storage import Judgment

    with visitor(server) as mira:
        seen = [answered(mira), answered(mira)]
        text = mira.post("/api/compare", json={"messages": ask()}).raise_for_status().text
        events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        blind = [event["generation_id"] for event in events if "generation_id" in event]
        for left, right in (seen, blind):
            mira.post("/api/judgments", json={"kind": "vote", "left": left, "right": right, "winner": "left"})
    with database.read() as session:
        assert [judgment.blinded for judgment in session.scalars(select(Judgment))] == [False, True]
    with visitor(server) as tom:  # who may have been told what mira was told
        left, right = blind
        tom.post("/api/judgments", json={"kind": "vote", "left": left, "right": right, "winner": "right"})
    with database.read() as session:
        assert [judgment.blinded for judgment in session.scalars(select(Judgment))] == [False, True, False]


def test_a_version_that_people_like_less_is_rolled_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "nest")
    for pieces in (["Good"], ["Dud"]):
        publish(workspace, pieces, kind="sft")
    opened = open_database(workspace.database_path)
    recorder = Recorder(opened)

    def judged(version: str, value: str, people: int) -> None:
        for number in range(people):
            done = Completion("x", "stop", 1, 1)
            answer = recorder.record_generation(version, ask(), Sampling(), done)
            recorder.record_thumb(answer, value, client=Person.account(f"{value}{number}"))  # type: ignore[arg-type]

    workspace.versions.promote("v1-sft", "first")
    judged("v1-sft", "up", 40)
    assert roll_back_if_worse(workspace.versions, opened) is None  # nothing was served before
    workspace.versions.promote("v2-sft", "passed the gate")
    judged("v2-sft", "down", 3)
    assert roll_back_if_worse(workspace.versions, opened) is None  # three people may be grumpy
    judged("v2-sft", "down", 12)
    found = roll_back_if_worse(workspace.versions, opened)
    assert found is not None and found.is_worse
    serving = workspace.versions.serving()
    assert serving is not None and serving.name == "v1-sft"
    card = workspace.versions.get("v2-sft").card
    assert card.state == "rejected" and card.verdict.startswith("Rolled back: ")
    assert roll_back_if_worse(workspace.versions, opened) is None
    workspace.versions.promote("v2-sft", "nevertheless", force=True)
    assert roll_back_if_worse(workspace.versions, opened) is None  # whoever forces it has read why
    opened.close()

"""Promotions take over live, broken versions do not, and votes outlive the server."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from nestling.storage import Generation, Judgment, open_database
from nestling.workspace import Workspace
from serving_support import LiveServer, ask, publish, running, running_process, wait_until

Events = Iterator[dict[str, Any]]

# Long enough that a version can be loaded meanwhile.
COUNT = 3000


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "nest")
    for letter in "abcd":
        publish(workspace, [f"{letter}{n} " for n in range(30)], loop=True)
    workspace.versions.promote("v1-sft", "first")
    return workspace


@contextlib.contextmanager
def streaming(
    server: LiveServer, model: str = "nestling", count: int = COUNT
) -> Iterator[Iterator[dict[str, Any]]]:
    """Events of a long answer that has begun."""
    body = {"model": model, "messages": ask(), "stream": True, "max_tokens": count}
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = (line.removeprefix("data: ") for line in reply.iter_lines() if line)
        events = (json.loads(line) for line in lines if line != "[DONE]")
        next(events)
        yield events


def words(events: Events) -> list[str]:
    """What the rest of an answer says."""
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events).split()


def counted(letter: str) -> list[str]:
    return [f"{letter}{n % 30}" for n in range(COUNT)]


def say(server: LiveServer, model: str = "nestling") -> str:
    with server.client() as client:
        body = {"model": model, "messages": ask(), "max_tokens": 1}
        return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def test_a_stream_ends_on_the_version_it_began_with(workspace: Workspace) -> None:
    with running(workspace) as server:
        server.wait()
        with streaming(server) as events:
            workspace.versions.promote("v2-sft", "better")
            server.wait("v2-sft")
            assert say(server) == "b0 " and set(server.status()["loaded"]) == {"v1-sft", "v2-sft"}
            assert words(events) == counted("a")
        wait_until(lambda: server.status()["loaded"] == ["v2-sft"])
        workspace.versions.roll_back()
        server.wait("v1-sft")
        assert say(server) == "a0 "


def test_a_broken_version_does_not_take_over(workspace: Workspace) -> None:
    (workspace.versions.get("v2-sft").folder / "broken").touch()
    with running(workspace) as server:
        server.wait()
        workspace.versions.promote("v2-sft", "better")
        wait_until(lambda: server.status()["error"] is not None)
        assert "broken on purpose" in server.status()["error"]
        assert say(server) == "a0 " and server.status()["serving"]["name"] == "v1-sft"
        with server.client() as client:
            reply = client.post("/v1/chat/completions", json={"model": "v2-sft", "messages": ask()})
            assert reply.status_code == 503 and "broken on purpose" in reply.json()["error"]["message"]
        workspace.versions.promote("v3-sft", "better still")
        server.wait("v3-sft")
        assert say(server) == "c0 " and server.status()["error"] is None
        workspace.versions.pointer_path.write_text("{")
        wait_until(lambda: server.status()["error"] is not None)
        assert say(server) == "c0 "


def test_an_engine_that_breaks_down_says_so_and_is_replaced(workspace: Workspace) -> None:
    fragile = workspace.versions.get("v2-sft").folder / "fragile"
    fragile.touch()
    with running(workspace) as server, server.client() as client:
        server.wait()
        body = {"model": "v2-sft", "messages": ask(), "max_tokens": 5}
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 500 and "engine of v2-sft failed" in reply.json()["error"]["message"]
        lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.strip().split("\n\n")
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
        assert "engine of v2-sft failed" in error["message"] and error["type"] == "server_error"
        assert say(server) == "a0 " and server.status()["open_requests"] == 0
        fragile.unlink()
        assert say(server, "v2-sft") == "b0 "


def test_two_at_most_and_none_with_a_stream_in_flight(workspace: Workspace) -> None:
    with running(workspace) as server:
        server.wait()
        assert [say(server, f"v{n}-sft") for n in (2, 3)] == ["b0 ", "c0 "]
        assert set(server.status()["loaded"]) == {"v1-sft", "v3-sft"}  # the served one stays
        with streaming(server, "v3-sft") as third:
            assert say(server, "v4-sft") == "d0 "  # the idle one made room, though it is served
            assert set(server.status()["loaded"]) == {"v3-sft", "v4-sft"}
            assert say(server) == "a0 "
            assert set(server.status()["loaded"]) == {"v3-sft", "v1-sft"}
            with streaming(server) as first:
                # A promotion waits for room, then takes over; the streams it waited for are whole.
                workspace.versions.promote("v2-sft", "better")
                assert words(third) == counted("c") and words(first) == counted("a")
        server.wait("v2-sft")
        assert say(server) == "b0 "


def test_where_one_version_fits_requests_wait_for_the_swap(workspace: Workspace) -> None:
    with running(workspace, max_loaded=1) as server:
        server.wait()
        for name, letter in (("v2-sft", "b"), ("v3-sft", "c")):
            workspace.versions.promote(name, "better")
            said = []
            while letter not in said:
                said.append(say(server)[0])
                assert len(server.status()["loaded"]) <= 1
            assert set(said) <= {"abc"["abc".index(letter) - 1], letter}
        (workspace.versions.get("v4-sft").folder / "broken").touch()
        workspace.versions.promote("v4-sft", "broken")
        wait_until(lambda: server.status()["error"] is not None)
        assert say(server) == "c0 "


def test_serving_begins_with_the_first_promotion(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "nest")
    with running(workspace) as server, server.client() as client:
        assert client.get("/healthz").status_code == 503
        reply = client.post("/v1/chat/completions", json={"model": "nestling", "messages": ask()})
        assert reply.status_code == 503 and reply.headers["Retry-After"]
        assert client.get("/v1/models").json()["data"] == []
        workspace.versions.promote(publish(workspace, ["Hi"]).name, "first")
        server.wait()
        assert client.get("/healthz").json() == {"status": "ok"} and say(server) == "Hi"


def test_stopping_the_server_ends_a_stream_with_an_error(workspace: Workspace) -> None:
    with running_process(workspace) as (server, process):
        server.wait()
        with streaming(server, count=90_000) as events:
            process.send_signal(signal.SIGTERM)
            *said, last = events
        assert "the server is stopping" in last["error"]["message"]
        assert process.wait(20) == -signal.SIGTERM
    database = open_database(workspace.database_path)
    with database.read() as session:  # what people have read is written down: they may judge it
        [row] = session.scalars(select(Generation))
    database.close()
    assert row.finish_reason == "cancelled" and row.answer.split()[: len(words(iter(said)))] == words(
        iter(said)
    )


def test_acknowledged_votes_survive_kill_9(workspace: Workspace) -> None:
    acknowledged = []
    with running_process(workspace) as (server, process):
        server.wait()
        with server.client() as client:
            body = {"model": "nestling", "messages": ask(), "max_tokens": 1}
            generation_id = client.post("/v1/chat/completions", json=body).json()["id"]
            thumb = {"kind": "thumb", "generation_id": generation_id, "value": "up"}
            for _ in range(25):
                acknowledged.append(client.post("/api/judgments", json=thumb).raise_for_status().json()["id"])
        process.kill()
        assert process.wait() == -signal.SIGKILL
    database = open_database(workspace.database_path)
    with database.read() as session:
        assert [row.id for row in session.scalars(select(Judgment))] == acknowledged
    database.close()
    with running(workspace) as server:  # and the next server goes on
        server.wait()
        with server.client() as client:
            assert client.post("/api/judgments", json=thumb).json()["id"] == acknowledged[-1] + 1

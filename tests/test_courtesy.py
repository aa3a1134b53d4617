"""Long work pauses while somebody is answered, and is never starved."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestling.compute.courtesy import answering, make_way, make_way_for
from nestling.compute.workers import Workers
from nestling.workspace import Workspace
from serving_support import publish, running, wait_until


@pytest.fixture
def sign(tmp_path: Path) -> Iterator[Path]:
    sign = tmp_path / "answering"
    make_way_for(sign)
    yield sign
    make_way_for(None)


def seconds_of(pause: object) -> float:
    start = time.monotonic()
    assert callable(pause)
    pause()
    return time.monotonic() - start


def test_work_pauses_until_the_answer_is_given(sign: Path) -> None:
    sign.touch()
    time.sleep(0.2)  # the work that the pause is measured by
    threading.Timer(0.15, sign.unlink).start()
    assert 0.1 < seconds_of(make_way) < 0.5


def test_work_keeps_a_fifth_however_many_chat(sign: Path) -> None:
    stop = threading.Event()

    def chat() -> None:
        while not stop.wait(0.05):
            sign.touch()

    sign.touch()
    thread = threading.Thread(target=chat)
    thread.start()
    make_way_for(sign)
    time.sleep(0.1)
    paused = seconds_of(make_way)
    again = seconds_of(make_way)  # next to nothing was worked since
    stop.set()
    thread.join()
    assert 0.3 < paused < 0.8 and again < 0.2


@pytest.mark.parametrize("age", [5.0, -3600.0], ids=["the server was killed", "the clock was set back"])
def test_an_old_sign_stops_nobody(sign: Path, age: float) -> None:
    sign.touch()
    os.utime(sign, (time.time() - age, time.time() - age))
    assert not answering(sign)
    time.sleep(0.1)
    assert seconds_of(make_way) < 0.05


def test_without_a_sign_to_look_at_nothing_pauses(tmp_path: Path) -> None:
    make_way_for(None)
    (tmp_path / "answering").touch()
    assert seconds_of(make_way) < 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_workers_look_before_every_piece(sign: Path, count: int) -> None:
    done: list[int] = []

    def work(_: int, item: int) -> None:
        time.sleep(0.05)
        done.append(item)
        if len(done) == 2:
            sign.touch()
            threading.Timer(0.1, sign.unlink).start()

    assert seconds_of(lambda: Workers(count).map(work, range(4))) > 0.2 / count
    assert sorted(done) == [0, 1, 2, 3]


def test_the_server_shows_the_sign_while_it_answers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "nest")
    publish(workspace, [f"word{n} " for n in range(50)], loop=True)
    workspace.versions.promote("v1-sft", "first")
    sign = workspace.answering_sign
    with running(workspace, max_tokens=90_000) as server:
        server.wait()
        assert not sign.exists()
        body = {"model": "nestling", "messages": [{"role": "user", "content": "Count"}], "stream": True}
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            for _ in range(3):  # longer than a sign stays fresh
                assert answering(sign)
                time.sleep(0.5)
        wait_until(lambda: not sign.exists(), seconds=10)  # hung up: nobody is answered any more

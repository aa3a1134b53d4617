"""How the people of the simulated town talk to the server: over HTTP, and again where it has just been killed."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from nestling.bench.town import Diary, Rater, remembered, utility
from nestling.errors import BenchError

PATIENCE = 300.0
"""Seconds for which somebody tries again while the server is gone."""
GROUP = 10
"""Identities of a crowd that vote on the same answers, each having asked for one pair."""
_AGAIN_SECONDS = 0.5


class Broken(Exception):
    """An answer broke off, or the server was too busy or on its way down."""


@dataclass(frozen=True)
class Door:
    """The server, wherever it listens now.

    Args:
        address: gives its URL, which is another one after it was started anew.
        answer_tokens: the longest answer that is asked for.
    """

    address: Callable[[], str]
    answer_tokens: int = 64
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120, trust_env=False))

    def call(self, method: str, path: str, who: dict[str, str], body: dict[str, Any] | None = None) -> Any:
        """A plain request, its reply as JSON."""

        def once() -> Any:
            reply = self.client.request(method, self.address() + path, json=body, headers=who)
            _check(reply.status_code, reply.text)
            return reply.json()

        return _patiently(once)

    def compare(self, question: str, who: dict[str, str], seed: int) -> list[tuple[str, str]]:
        """Two answers of the served version, side by side as the page shows them: (id, text)."""
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.answer_tokens,
            "seed": seed,
        }

        def once() -> list[tuple[str, str]]:
            texts, ids = ["", ""], ["", ""]
            with self.client.stream("POST", self.address() + "/api/compare", json=body, headers=who) as reply:
                if reply.status_code != 200:
                    _check(reply.status_code, reply.read().decode(errors="replace"))
                for line in reply.iter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            raise Broken(event["error"]["message"])
                        texts[event["answer"]] += event.get("text", "")
                        ids[event["answer"]] = event.get("generation_id", ids[event["answer"]])
            if not all(ids):
                raise Broken("the answers broke off")
            return list(zip(ids, texts, strict=True))

        found: list[tuple[str, str]] = _patiently(once)
        return found

    def answer(self, question: str, model: str) -> str:
        """The likeliest answer of a version, which nobody writes down."""
        body = {
            "model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "seed": 0,
            "store": False, "max_tokens": self.answer_tokens,
        }  # fmt: skip
        reply = self.call("POST", "/v1/chat/completions", {}, body)
        text: str = reply["choices"][0]["message"]["content"]
        return text


def _check(status: int, text: str) -> None:
    if status in (429, 500, 503):
        raise Broken(f"{status}: {text[:200]}")
    if status >= 400:
        raise BenchError(f"the server answered {status}: {text[:200]}")


def _patiently(act: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except (httpx.TransportError, Broken) as error:
            if time.monotonic() > deadline:
                raise BenchError(f"the server was gone for too long: {error}") from error
            time.sleep(_AGAIN_SECONDS)


def at_once(tasks: Sequence[Callable[[], object]], threads: int, done: Callable[[int], object]) -> None:
    """Do all tasks, so many at a time; ``done`` is told how many are, one thread at a time.

    Raises:
        BenchError: what a task raised; the others are left.
    """
    waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    errors: list[BaseException] = []
    finished, lock = 0, threading.Lock()

    def work() -> None:
        nonlocal finished
        while not errors:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                task()
                with lock:
                    finished += 1
                    done(finished)
            except BaseException as error:  # of any kind: nobody watches this thread, the caller raises it
                errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class Crowd:
    """The people with what they log in by, and where their diaries lie."""

    door: Door
    people: Sequence[Rater]
    tokens: dict[str, str]
    diaries: Path
    questions: Sequence[str]
    threads: int = 12
    _open: dict[str, Diary] = field(default_factory=dict)

    def visits(self, occasion: str, each: int) -> list[Callable[[], object]]:
        """What is left of everybody's visits on an occasion: their diaries tell who has been there."""
        been = {
            (entry["person"], entry["occasion"])
            for entry in remembered(self.diaries)
            if entry["kind"] == "thumb"
        }
        left: list[Callable[[], object]] = []
        for turn in range(each):
            for rater in self.people:
                when = f"{occasion}/{turn}"
                if (f"account:{rater.name}", when) not in been:
                    left.append(lambda rater=rater, when=when: self.visit(rater, when))  # type: ignore[misc]
        return left

    def visit(self, rater: Rater, when: str) -> None:
        """Ask something, say which of two answers is better, and whether the first one was any good."""
        drawn = rater.draws(when)
        who = {"Authorization": f"Bearer {self.tokens[rater.name]}"}
        (left, left_text), (right, right_text) = self.door.compare(
            drawn.choice(self.questions), who, drawn.getrandbits(31)
        )
        side = rater.chooses(left_text, right_text, drawn)
        self._say(f"account:{rater.name}", who, when, "vote", side, [left, right])
        self._say(f"account:{rater.name}", who, when, "thumb", rater.thumb(left_text, drawn), [left])

    def _say(
        self, person: str, who: dict[str, str], when: str, kind: str, value: str, answers: list[str]
    ) -> None:
        """A judgment, and into the diary once the server has acknowledged it."""
        body = {"kind": kind}
        body |= {"left": answers[0], "right": answers[1], "winner": value} if kind == "vote" else {
            "generation_id": answers[0], "value": value}  # fmt: skip
        number = self.door.call("POST", "/api/judgments", who, body)["id"]
        diary = self._open.setdefault(person, Diary(self.diaries / f"{person.replace(':', '-')}.jsonl"))
        diary.append(kind, id=number, person=person, occasion=when, value=value, answers=answers)

    def poisoners(self, groups: Iterable[int], seed: int) -> list[Callable[[], object]]:
        """A crowd of made-up people, in groups: each asks once, and the whole group says of each pair the opposite of
        what the town likes. Any browser gets as many identities as it asks for."""
        left: list[Callable[[], object]] = []
        for group in groups:
            if not any(
                entry["occasion"] == f"poison/{group}/done" for entry in remembered(self.diaries / "poison")
            ):
                left.append(lambda group=group: self._poison(group, Rater(group, seed)))  # type: ignore[misc]
        return left

    def _poison(self, group: int, mind: Rater) -> None:
        drawn, door = mind.draws("poison"), self.door
        diary = Diary(self.diaries / "poison" / f"{group}.jsonl")
        met = [entry for entry in diary.read()[0] if entry["kind"] == "identities"]
        people = met[0]["people"] if met else [door.call("POST", "/api/identity", {}) for _ in range(GROUP)]
        if not met:  # the same people go on where they were stopped
            diary.append("identities", people=people, occasion=f"poison/{group}")
        headers = [{"X-Nestling-Identity": person["identity"]} for person in people]
        for header in headers:
            pair = door.compare(drawn.choice(self.questions), header, drawn.getrandbits(31))
            worse = "left" if utility(pair[0][1]) < utility(pair[1][1]) else "right"
            for person, own in zip(people, headers, strict=True):
                self._say(person["id"], own, f"poison/{group}", "vote", worse, [pair[0][0], pair[1][0]])
        diary.append("group", occasion=f"poison/{group}/done")

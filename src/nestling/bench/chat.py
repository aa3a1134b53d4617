"""What people get who chat: time to the first token, tokens a second; alone, beside a training, and in a crowd."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from nestling.bench.report import machine
from nestling.compute.device import Hardware
from nestling.data import curriculum
from nestling.errors import BenchError
from nestling.workspace import EventLog, Workspace, atomic

ANSWER_TOKENS = 64
_START_SECONDS, _MEMORY_SECONDS = 120.0, 5.0


@dataclass(frozen=True)
class Told:
    """One answer: seconds to its first piece of text, seconds from there to its end, and its tokens."""

    first: float
    rest: float
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens a second once it has begun to speak; the first one came before."""
        return (self.tokens - 1) / self.rest if self.rest > 0 else 0.0


@dataclass
class Talk:
    """What happened in a while of chatting; ``memory``: (seconds since the start, bytes of the server)."""

    seconds: float
    answers: list[Told] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second of all answers together."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


def questions() -> list[str]:
    """Plain one-turn questions of the gate split, of every behaviour that is not held out."""
    names = [name for name, b in curriculum.load().behaviours.items() if not b.held_out]
    chosen = curriculum.items("gate", 0, names, 12)
    return [item.messages[0]["content"] for item in chosen if len(item.messages) == 1]


def ask(client: httpx.Client, text: str, seed: int) -> Told:
    """Stream one answer.

    Raises:
        BenchError: the server refused it, or broke off.
    """
    body = {
        "model": "nestling", "messages": [{"role": "user", "content": text}], "stream": True, "seed": seed,
        "max_tokens": ANSWER_TOKENS, "store": False, "stream_options": {"include_usage": True},
    }  # fmt: skip
    start, first, tokens = time.perf_counter(), 0.0, 0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise BenchError(f"the server answered {response.status_code}: {response.read().decode()[:200]}")
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise BenchError(f"an answer broke off: {event['error']['message']}")
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - start
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    end = time.perf_counter() - start
    return Told(first or end, end - (first or end), tokens)


def talk(url: str, streams: int, seconds: float, server: psutil.Process) -> Talk:
    """So many people ask one question after another for a while, without a pause."""
    asked, happened, start = questions(), Talk(seconds), time.monotonic()
    going_on = lambda: time.monotonic() - start < seconds

    def person(number: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            turn = 0
            while going_on():
                try:
                    happened.answers.append(
                        ask(client, asked[(number * 7 + turn) % len(asked)], number * 1000 + turn)
                    )
                except (BenchError, httpx.HTTPError) as error:
                    happened.errors.append(str(error) or type(error).__name__)
                turn += 1

    people = [threading.Thread(target=person, args=(number,)) for number in range(streams)]
    for thread in people:
        thread.start()
    while going_on():
        happened.memory.append((time.monotonic() - start, server.memory_info().rss))
        time.sleep(min(_MEMORY_SECONDS, seconds / 10))
    for thread in people:
        thread.join()
    happened.seconds = time.monotonic() - start
    return happened


@contextmanager
def serving(
    workspace: Workspace, log: Path, words: Sequence[str] = ()
) -> Iterator[tuple[str, psutil.Process]]:
    """A server of the workspace in a process of its own: its address and the process.

    Args:
        words: further options of ``nestling serve``.

    Raises:
        BenchError: it did not start.
    """
    command = [
        sys.executable,
        "-m",
        "nestling",
        "serve",
        "--port",
        "0",
        "--workspace",
        str(workspace.root),
        *words,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "NESTLING_TOKEN"}
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("Listening on ").strip()
            deadline = time.monotonic() + _START_SECONDS
            while url and not _is_ready(url):
                if time.monotonic() > deadline:
                    url = ""
                time.sleep(0.2)
            if not url:
                raise BenchError(
                    "the server did not start.", where=str(log), remedy="See what it says there."
                )
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/status", timeout=5).json()["serving"] is not None
    except httpx.HTTPError:
        return False


class Training:
    """A fine-tuning of the served version that goes on beside; its steps are counted from its diary."""

    def __init__(self, workspace: Workspace, log: Path) -> None:
        known = set(workspace.runs.glob("sft-*"))
        # More tokens than it will get to see: it is ended when it has been watched for long enough.
        command = [sys.executable, "-m", "nestling", "sft", "--max-tokens", "100000000", "--epochs", "1000"]
        command += ["--no-starter", "--data", str(_conversations(log.with_suffix(".jsonl")))]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                ["nice", "-n", "10", *command, "--workspace", str(workspace.root)],
                stdout=errors,
                stderr=errors,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not (new := set(workspace.runs.glob("sft-*")) - known) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not new:
            self._process.kill()
            raise BenchError("the training did not start.", where=str(log), remedy="See what it says there.")
        self._folder = new.pop()
        while self.steps() < 2 and time.monotonic() < deadline:
            time.sleep(0.2)

    def steps(self) -> int:
        """Steps made so far."""
        events = EventLog(self._folder / "events.jsonl").read()[0]
        return sum(event["kind"] == "step" for event in events)

    def pace(self, act: Callable[[], object]) -> float:
        """Steps a second while ``act`` goes on."""
        before, start = self.steps(), time.monotonic()
        act()
        return (self.steps() - before) / (time.monotonic() - start)

    def end(self) -> None:
        """Stop it and forget it."""
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _conversations(path: Path) -> Path:
    behaviours = [name for name, b in curriculum.load().behaviours.items() if not b.held_out]
    shown = curriculum.demonstrations(0, dict.fromkeys(behaviours, 60))
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in shown]
    atomic.write_text(path, "".join(lines))
    return path


@dataclass(frozen=True)
class Found:
    """One person alone, one beside a training (with its pace without and with them), and a crowd."""

    alone: Talk
    beside: Talk
    pace_alone: float
    pace_beside: float
    streams: int
    crowd: Talk

    @property
    def share(self) -> float:
        """What the training kept of its pace under constant chat."""
        return self.pace_beside / self.pace_alone if self.pace_alone else 0.0


def measure(workspace: Workspace, streams: int, minutes: float, told: Callable[[str], object]) -> Found:
    """One person alone for a minute, one beside a training for two, a crowd for ``minutes``."""
    folder = workspace.cache / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    part = 60 * minutes / 5
    with serving(workspace, folder / "chat-server.log") as (url, server):
        alone = talk(url, 1, part, server)
        told(f"alone: {len(alone.answers)} answers")
        training = Training(workspace, folder / "chat-training.log")
        try:
            pace_alone = training.pace(lambda: time.sleep(part))
            happened: list[Talk] = []
            pace_beside = training.pace(lambda: happened.append(talk(url, 1, 2 * part, server)))
        finally:
            training.end()
        told(f"beside a training: {len(happened[0].answers)} answers")
        crowd = talk(url, streams, 60 * minutes, server)
        told(f"{streams} at once: {len(crowd.answers)} answers, {len(crowd.errors)} errors")
    return Found(alone, happened[0], pace_alone, pace_beside, streams, crowd)


def write_chat(folder: Path, hardware: Hardware, version: str, found: Found, command: str) -> Path:
    """``chat.md``."""
    crowd, mib = found.crowd, 2**20
    early = [held for at, held in crowd.memory if at <= crowd.seconds / 5] or [0]
    late = [held for at, held in crowd.memory if at >= crowd.seconds * 4 / 5] or [0]
    lines = [
        "# Chatting",
        "",
        f"{machine(hardware)}. Version {version}. Command: `{command}`.",
        "",
        f"Streamed answers of at most {ANSWER_TOKENS} tokens; each person asks again as soon as they are answered. "
        "The last columns are medians with the slowest twentieth.",
        "",
        "| | answers | errors | first token, s | tokens/s of an answer | tokens/s in all |",
        "|---|---:|---:|---:|---:|---:|",
        _row("one person", found.alone),
        _row("one person, beside a fine-tuning", found.beside),
        _row(f"{found.streams} people for {crowd.seconds / 60:.1f} minutes", crowd),
        "",
        f"The fine-tuning kept {found.share:.0%} of its pace while that person chatted without a pause "
        f"({found.pace_alone:.2f} steps a second without them, {found.pace_beside:.2f} with).",
        "",
        f"Memory of the server with {found.streams} people: {statistics.median(early) / mib:.0f} MiB in the first "
        f"fifth of the time, {statistics.median(late) / mib:.0f} MiB in the last, "
        f"{max(h for _, h in crowd.memory) / mib:.0f} at most.",
        *(["", "Errors: " + "; ".join(sorted(set(crowd.errors))[:5])] if crowd.errors else []),
        "",
    ]
    page = folder / "chat.md"
    atomic.write_text(page, "\n".join(lines))
    return page


def _row(name: str, happened: Talk) -> str:
    firsts = sorted(answer.first for answer in happened.answers)
    rates = sorted((answer.rate for answer in happened.answers if answer.tokens > 8), reverse=True)
    head = f"| {name} | {len(firsts)} | {len(happened.errors)} "
    return f"{head}| {_slow(firsts)} | {_slow(rates)} | {happened.rate:.0f} |"


def _slow(values: Sequence[float]) -> str:
    """The median and, in brackets, the value at nineteen twentieths."""
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({values[min(len(values) - 1, int(0.95 * len(values)))]:.2f})"

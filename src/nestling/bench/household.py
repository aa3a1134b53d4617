"""The processes of the simulated town: the server under its supervisor, and learnings; each is killed on occasion."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from nestling.errors import BenchError
from nestling.workspace import Workspace, atomic

_START_SECONDS = 600.0  # the base may have to be fetched first
_POLL_SECONDS = 0.2
STREAMS = 24
"""Answers that the server computes at a time: two to each of a dozen people."""


@dataclass
class Household:
    """A workspace's supervisor and server, and what else runs in it.

    Args:
        base: as ``nestling up`` takes it.
        settings: for ``nestling up``, such as ``hardware.dtype=float32``.
        folder: of the logs, and of the list of processes by which the next call ends what a killed one has left.
    """

    workspace: Workspace
    base: str
    settings: Sequence[str]
    folder: Path
    url: str = ""
    _supervisor: subprocess.Popen[bytes] | None = None
    _others: list[psutil.Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end_what_was_left()

    # The server ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start supervisor and server, on a port that is free now, and wait for the served version."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = ["up", "--no-train", "--base", self.base, "--port", str(port), "--max-batch", str(STREAMS)]
        self._supervisor = self._spawn([*words, *setting_words(self.settings)], "supervisor.log")
        self.url = f"http://127.0.0.1:{port}"
        self.wait_for_serving()

    def wait_for_serving(self) -> str:
        """Wait until the server answers with the version that the workspace points at; returns its name."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                serving = httpx.get(f"{self.url}/api/status", timeout=5, trust_env=False).json()["serving"][
                    "name"
                ]
                pointed = self.workspace.versions.serving()
                if pointed is not None and serving == pointed.name:
                    return str(serving)
            if self._supervisor is None or self._supervisor.poll() is not None:
                break
            time.sleep(0.2)
        log = self.folder / "supervisor.log"
        raise BenchError("the server did not start.", where=str(log), remedy="See what it says there.")

    def kill_server(self) -> None:
        """``kill -9``; the supervisor starts another one."""
        for child in self._children():
            child.kill()

    def kill_supervisor(self) -> None:
        """``kill -9``: the server notices and ends; another supervisor is started."""
        children = self._children()
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        if alive:
            raise BenchError("the server outlived its supervisor by half a minute.")
        self.start()

    def stop(self) -> None:
        """End the supervisor and with it the server."""
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.terminate()
            self._supervisor.wait()
        self._supervisor = None

    def _children(self) -> list[psutil.Process]:
        if self._supervisor is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._supervisor.pid).children(recursive=True)
        return []

    # Everything else ----------------------------------------------------------------------------------------------

    def run(
        self, words: Sequence[str], log: str, kill_when: Callable[[], bool] | None = None,
        place: Workspace | None = None,
    ) -> int:  # fmt: skip
        """A ``nestling`` command to its end, or until ``kill_when`` says that it is killed; returns its exit code.

        ``place``: another workspace than the town's.
        """
        process = self._spawn(words, log, place)
        try:
            while kill_when is not None and process.poll() is None:
                if kill_when():
                    process.kill()
                    break
                time.sleep(_POLL_SECONDS)
            return process.wait()
        except BaseException:  # Ctrl-C too: it must not go on alone
            process.terminate()
            process.wait()
            raise

    def must(self, words: Sequence[str], log: str, place: Workspace | None = None) -> None:
        """``run``, which must succeed.

        Raises:
            BenchError: it did not.
        """
        if code := self.run(words, log, place=place):
            raise BenchError(f"`nestling {' '.join(words)}` ended with {code}.", where=str(self.folder / log))

    def _spawn(
        self, words: Sequence[str], log: str, place: Workspace | None = None
    ) -> subprocess.Popen[bytes]:
        root = (place or self.workspace).root
        command = [sys.executable, "-m", "nestling", *words, "--workspace", str(root)]
        environment = {name: value for name, value in os.environ.items() if name != "NESTLING_TOKEN"}
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        self._remember(process.pid)
        return process

    def _remember(self, pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            self._others.append(psutil.Process(pid))
        self._others = [process for process in self._others if process.is_running()]
        kept = [[process.pid, process.create_time()] for process in self._others]
        atomic.write_json(self.folder / "processes.json", kept)

    def _end_what_was_left(self) -> None:
        with suppress(OSError, ValueError):
            for pid, born in json.loads((self.folder / "processes.json").read_text()):
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    if process.create_time() == born:  # not another one that has got its number since
                        process.send_signal(signal.SIGTERM)
                        process.wait(30)


def setting_words(settings: Sequence[str]) -> list[str]:
    """Settings as words of a command line."""
    return [word for setting in settings for word in ("--set", setting)]

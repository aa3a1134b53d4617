"""``nestling up``: a server and a trainer as two processes, watched by a third that computes nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from rich.console import Console

from nestling.workflow.progress import ProgressReader, line
from nestling.workspace import Workspace

PARENT_PIPE = "NESTLING_PARENT_PIPE"
_RESTART_SECONDS = 2.0
_HEALTHY_SECONDS = 300.0  # a server that lived this long may be started afresh as often as at first
_MAX_RESTARTS = 3


def exit_with_parent() -> None:
    """In a child: end at once when the supervisor is gone, however it went.

    The supervisor holds the other end of a pipe and never writes; reading from it returns when that end closes.
    """
    number = os.environ.pop(PARENT_PIPE, None)
    if number is None:
        return

    def watch() -> None:
        os.read(int(number), 1)
        os._exit(1)  # every stage survives being killed, so there is nothing to tidy up

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@dataclass
class Supervisor:
    """Spawns (never forks) the children and reports on the terminal.

    Args:
        workspace: where everything lives.
        serve: arguments of the server's command line.
        train: arguments of the trainer's, None to serve only.
        open_page: called once when the server answers at ``address``.
    """

    workspace: Workspace
    serve: Sequence[str]
    train: Sequence[str] | None
    console: Console = field(default_factory=Console)
    open_page: Callable[[], object] | None = None
    address: tuple[str, int] = ("127.0.0.1", 0)

    def __post_init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_inheritable(self._read_end, True)
        self._stopping = False

    def run(self) -> int:
        """Watch until Ctrl-C or SIGTERM; returns the exit code."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        server = self._spawn(self.serve)
        trainer = self._spawn(self.train, nice=10) if self.train else None
        restarts, started = 0, time.monotonic()
        reader, shown = ProgressReader(self.workspace), ""
        try:
            while not self._stopping:
                time.sleep(0.5)
                if self.open_page and _answers(*self.address):
                    self.open_page()
                    self.open_page = None
                if trainer is not None:
                    shown = self._report(reader, shown)
                    if trainer.poll() is not None:
                        self._report(reader, shown)
                        self._ended(trainer.returncode)
                        trainer = None
                if server.poll() is not None and not self._stopping:
                    if time.monotonic() - started >= _HEALTHY_SECONDS:
                        restarts = 0
                    if restarts == _MAX_RESTARTS or server.returncode == 2:
                        self.console.print("[red]The server stopped and will not be started again.[/red]")
                        return server.returncode or 1
                    restarts += 1
                    self.console.print(
                        f"[yellow]The server stopped ({server.returncode}); starting it again.[/yellow]"
                    )
                    time.sleep(_RESTART_SECONDS)
                    server, started = self._spawn(self.serve), time.monotonic()
        finally:
            self._end([p for p in (server, trainer) if p is not None])
        return 0

    def _spawn(self, arguments: Sequence[str], nice: int = 0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "nestling", *arguments]
        if nice and os.name == "posix":
            command = ["nice", "-n", str(nice), *command]
        environment = os.environ | {PARENT_PIPE: str(self._read_end)}
        return subprocess.Popen(command, env=environment, pass_fds=[self._read_end], stdin=subprocess.DEVNULL,
                                start_new_session=True)  # fmt: skip

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _report(self, reader: ProgressReader, shown: str) -> str:
        """Print the raising's line when its stage changed, or every ten seconds of steps."""
        state = reader()
        if state is None:
            return shown
        text = line(state)
        now = int(time.monotonic() / 10)
        mark = f"{state.get('stage')}|{state.get('state')}|{state.get('message')}|{now}"
        if mark != shown and text != getattr(self, "_last_text", None):
            self._last_text = text
            self.console.print(text, markup=False, highlight=False)
            if state.get("message") and state["message"] != getattr(self, "_last_message", None):
                self._last_message = state["message"]
                self.console.print(f"  {state['message']}", markup=False, highlight=False)
        return mark

    def _ended(self, code: int) -> None:
        if code == 0:
            serving = self.workspace.versions.serving()
            name = serving.name if serving else "nothing"
            self.console.print(f"[green]The raising is finished; {name} is being served.[/green]")
        else:
            killed = (
                " It was killed: perhaps by the system, for want of memory."
                if code == -signal.SIGKILL
                else ""
            )
            self.console.print(
                f"[yellow]The raising stopped (exit code {code}).{killed} "
                "Serving goes on; the next `nestling up` continues.[/yellow]"
            )

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + 10
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(host: str, port: int) -> bool:
    """Whether something listens there; 0.0.0.0 and :: are reached as this machine."""
    try:
        socket.create_connection((host, port), timeout=0.2).close()
    except OSError:
        return False
    return True

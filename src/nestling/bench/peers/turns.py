"""A contender's side of a duel: wait for the turn, take it, say how long it took. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Turns:
    """Speaks JSON lines: ``{"ready": true}`` once, then for every line read one turn and one line about it.

    Whatever else the process prints goes to its standard error.

    Attributes:
        setting: the JSON of the file named by the first argument.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.setting: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text("utf-8"))
        self._start = 0.0

    def wait(self, **about: Any) -> bool:
        """Say that everything is ready, or was done, and wait for the next turn; False when there is none.

        The peak of memory is this process's, unless ``about`` holds that of another one that did the work.
        """
        self._out.write(json.dumps({"peak": _peak()} | about) + "\n")
        if not sys.stdin.readline():
            return False
        self._start = time.perf_counter()
        return True

    def seconds(self) -> float:
        """Seconds since this turn began."""
        return time.perf_counter() - self._start

    def take(self, turn: Any) -> None:
        """Take turns to the end by calling ``turn``, which may return more to say about each."""
        going = self.wait(ready=True)
        while going:
            more = turn() or {}
            going = self.wait(**({"seconds": self.seconds()} | more))


def _peak() -> int:
    """The most bytes this process has held in memory at once."""
    try:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

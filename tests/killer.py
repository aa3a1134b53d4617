"""``python killer.py STAGE PLACE CALL ARGS...``: run ``nestling ARGS...`` and be killed within a function.

PLACE is ``module:name`` or ``module:Class.name``. At its CALL-th call while the diary is at STAGE the process gets a
SIGKILL, as from ``kill -9`` or the kernel: nothing is tidied up.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from nestling.cli import main
from nestling.workspace import EventLog


def kill_within(stage: str, place: str, call: int) -> None:
    """Arrange it."""
    at, calls, tell = "", 0, EventLog.append

    def listening(log: EventLog, kind: str, **fields: Any) -> dict[str, Any]:
        nonlocal at
        at = fields["stage"] if kind == "stage_started" else at
        return tell(log, kind, **fields)

    def killing(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += at == stage
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **named)

    EventLog.append = listening  # type: ignore[method-assign]
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *owners, name = name.split(".")
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    setattr(owner, name, killing)


if __name__ == "__main__":
    kill_within(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.argv[1:4] = []
    main()

"""One owner at a time, named when another one asks."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from nestling.errors import WorkspaceError
from nestling.workspace.atomic import readable_errors


class Lock:
    """An exclusive lock between processes, as a context manager.

    The operating system holds it (``flock``), so it is free again the moment its owner dies, however it dies.
    Beside the lock file a ``.holder`` file names the owner's pid, for people; nothing trusts it.

    Args:
        path: the lock file; its folder is made.
        what: what the lock protects, for the error, such as "the training run 'quickstart'".
        timeout: seconds to wait for another owner; 0 refuses at once.
    """

    def __init__(self, path: Path, what: str, timeout: float = 0.0) -> None:
        self.path, self.what, self.timeout = Path(path), what, timeout
        self._holder_path = self.path.with_suffix(".holder")
        self._lock = FileLock(str(self.path), thread_local=False)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            WorkspaceError: when another process holds it (naming its pid), or the folder cannot be written.
        """
        with readable_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=self.timeout)
            except Timeout:
                pid = self.holder()
                owner = f"process {pid}" if pid else "another process"
                raise WorkspaceError(
                    f"{self.what} is in use by {owner}.",
                    where=str(self.path),
                    remedy="Wait until it ends, or stop it" + (f" with: kill {pid}" if pid else "."),
                ) from None
            self._holder_path.write_text(str(os.getpid()))

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._lock.is_locked:
            self._holder_path.unlink(missing_ok=True)
            self._lock.release()

    def holder(self) -> int | None:
        """The pid the last owner wrote down, or None."""
        try:
            return int(self._holder_path.read_text())
        except (OSError, ValueError):
            return None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

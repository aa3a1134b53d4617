"""Writes that either happened or did not: a temporary file in the same folder, fsync, then one rename."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestling.errors import WorkspaceError

PARTIAL_SUFFIX = ".partial"

# Temporary files are made private, finished ones get the user's usual mode. The mask can only be read by
# setting it, which is done once, before there are threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)

_PROBLEMS = {
    errno.ENOSPC: ("the disk is full.", "Free some space and run the same command again."),
    errno.EFBIG: ("files may not grow so large.", "Raise the limit (ulimit -f), or choose another disk."),
    errno.EDQUOT: ("the disk quota is used up.", "Free some space and run the same command again."),
    errno.EROFS: ("the file system is read-only.", "Choose a folder on a writable disk."),
    errno.EACCES: ("permission was denied.", "Choose a folder you may write to, or change its owner."),
    errno.EPERM: ("permission was denied.", "Choose a folder you may write to, or change its owner."),
    errno.EEXIST: ("a file stands where a folder is needed.", "Move that file away."),
    errno.ENOTDIR: ("a file stands where a folder is needed.", "Move that file away."),
    errno.ENOENT: ("there is no such folder, and none can be made.", "Choose another place."),
    errno.EIO: ("the disk reported an error.", "Check the disk."),
}


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors (disk full, read-only, denied) into a WorkspaceError."""
    try:
        yield
    except Exception as error:  # only what says which error of the system it was goes further
        number = _system_error(error)
        if number not in _PROBLEMS:
            raise
        what, remedy = _PROBLEMS[number]
        raise WorkspaceError(f"cannot write: {what}", where=str(path), remedy=remedy) from error


def _system_error(error: Exception) -> int:
    """The operating system's number; safetensors, written in Rust, has it in its words alone. 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = (
        re.search(r"\(os error (\d+)\)$", str(error)) if type(error).__name__ == "SafetensorError" else None
    )
    return int(told[1]) if told else 0


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside ``folder`` survive a power cut."""
    _sync(folder)


@contextmanager
def new_file(path: Path, mode: int = 0o666 & ~_UMASK) -> Iterator[Path]:
    """Give an empty temporary file that replaces ``path`` when the block ends without an error.

    A reader sees the old content or the new one, also after ``kill -9`` or a power cut. Missing parents are made.

    Raises:
        WorkspaceError: when the place cannot be written.
    """
    path = Path(path)
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C too: nothing half-written stays
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file ``path`` by ``data``. See ``new_file``."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_private(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text`` in UTF-8, for its owner alone to read. See ``new_file``."""
    with new_file(path, 0o600) as temporary:
        temporary.write_text(text, "utf-8")


def write_text(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text`` in UTF-8. See ``new_file``."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the file ``path`` by ``value`` as indented JSON. See ``new_file``."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def new_folder(final_path: Path) -> Iterator[Path]:
    """Give an empty temporary folder that becomes ``final_path`` when the block ends without an error.

    Every file in it is on disk before the rename, so ``final_path`` is whole whenever it exists. A process
    that is killed leaves a ``.partial`` folder behind, which ``remove_partials`` clears.

    Raises:
        WorkspaceError: when ``final_path`` exists already, or the place cannot be written.
    """
    final_path = Path(final_path)
    with readable_errors(final_path):
        final_path.parent.mkdir(parents=True, exist_ok=True)
        refuse_existing(final_path)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{final_path.name}.", suffix=PARTIAL_SUFFIX, dir=final_path.parent)
        )
        try:
            yield temporary
            _finish_tree(temporary)
            os.chmod(temporary, 0o777 & ~_UMASK)
            refuse_existing(final_path)
            os.rename(temporary, final_path)
        except BaseException:  # Ctrl-C too: nothing half-written stays
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(final_path.parent)


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left in ``folder``. Only for the one owner of ``folder``, under its lock."""
    for left_over in Path(folder).glob(f".*{PARTIAL_SUFFIX}"):
        if left_over.is_dir():
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            left_over.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before long work whether its result can be written to the file ``path``; a missing folder is made.

    Raises:
        WorkspaceError: it cannot: a folder stands there, or none can be made, or permission is denied.
    """
    if path.is_dir():
        raise WorkspaceError("a folder stands here.", where=str(path), remedy="Choose another name.")
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def refuse_existing(path: Path) -> None:
    """Raise a WorkspaceError when something stands at ``path``.

    ``os.rename`` would silently replace an empty folder.
    """
    if path.exists():
        raise WorkspaceError("this exists already.", where=str(path), remedy="Choose another name.")


def _finish_tree(folder: Path) -> None:
    """Put every file on disk, with the user's usual mode: some libraries write private ones."""
    for root, _, files in os.walk(folder):
        for name in files:
            os.chmod(Path(root, name), 0o666 & ~_UMASK)
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

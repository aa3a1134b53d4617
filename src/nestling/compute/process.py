"""What must be settled before a process starts: how its threads wait and where its memory comes from.

Nothing here may import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time
from pathlib import Path

_TUNED, _SPINS = "NESTLING_TUNED", "NESTLING_SPINS"

# glibc hands every large tensor back to the system and asks for fresh zeroed pages the next time: 3.5 million page
# faults in three training steps. Kept and backed by huge pages, the same steps take three quarters of the time
# (measured, 2 cores, 135M parameters). https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_MALLOC = {
    "glibc.malloc.mmap_max": "0",
    "glibc.malloc.trim_threshold": str(1 << 40),
    "glibc.malloc.hugetlb": "1",
    # One heap for all threads: what one worker has given back, the other can use (PPO's peak 5.5 instead of 5.9 GiB).
    "glibc.malloc.arena_max": "1",
}
MALLOC_TUNABLES = ":".join(f"{name}={value}" for name, value in _MALLOC.items())
"""What ``GLIBC_TUNABLES`` is set to."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory has run out, in Python's way, the system's, or torch's on a CPU or accelerator."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(
        words in str(error) for words in ("can't allocate memory", "Cannot allocate memory", "out of memory")
    )


def give_memory_back() -> None:
    """Return what the allocator keeps and nobody uses to the system, where that can be asked for (glibc).

    Kept memory falls into holes: tensors of ever other sizes fit none of them exactly, and the heap grows.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


# Of processor time, so that waiting does not count. Asking for given memory again takes 0.1 s, on some virtual machines
# 2 s a gigabyte.
_TIDY_SECONDS = 120.0
_tidied = time.process_time()  # when this process last gave memory back


def tidy_memory() -> None:
    """Give memory back if that was not done for a while; for long work, between its steps."""
    global _tidied
    if time.process_time() - _tidied >= _TIDY_SECONDS:
        _tidied = time.process_time()
        give_memory_back()


def forget_peak() -> None:
    """Let ``peak_memory`` count anew, where the system can (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """The most bytes this process has held in memory at once, on Linux since ``forget_peak``; None where the system
    does not tell."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


LIBRARY_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "16",
}  # fmt: skip
"""Environment of every Nestling process; ``settle_libraries`` says why."""

SPINNING = {"GOMP_SPINCOUNT": "10000"}
"""Environment of long computations where OpenMP is GNU's: a thread looks half a millisecond for new work, then sleeps.

Waking a sleeping thread takes longer than most operations of a decode step: 16 answers on two threads 31 ms a step
instead of 57, and fine-tuning 5 % faster, a reward model 25 %, than two workers of one thread (Intel AMX, two cores).
"""


def spins() -> bool:
    """Whether this process's OpenMP threads look for new work before they sleep."""
    return sys.platform.startswith("linux") and os.environ.get("GOMP_SPINCOUNT", "0") != "0"


def settle_libraries(computing: bool = False) -> None:
    """Set what OpenMP and oneDNN read once; before torch is loaded. A user's own settings stay.

    ``computing``: this process will do nothing else for minutes, so that its threads may spin (``SPINNING``). What it
    starts that serves, sleeps.

    Waiting threads sleep: spinning ones starve when a neighbour is busy. On two cores every small operation took
    two scheduler ticks, 7,760 us instead of 168 us for a [16, 576] x [576, 1536] product. Sleeping costs a few
    microseconds.

    Few compiled kernels are kept, by oneDNN and by torch's own cache of them: every packed row has a length of its
    own, so that of the 1,024 that each keeps by default hardly one is ever used again. A pass needs about a dozen a
    worker. Memory grew by 16 MB with every fine-tuning step while only oneDNN's were limited, to 64; now by none.
    """
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if computing and not os.environ.keys() & SPINNING.keys():
        os.environ.update(SPINNING | {_SPINS: "1"})
    elif not computing and _SPINS in os.environ:
        for name in (*SPINNING, _SPINS):
            os.environ.pop(name, "")


def keep_memory() -> None:
    """Start this command again with an allocator that keeps what it has; for long computations on Linux.

    Returns at once where that is not possible, already done, or the user has set tunables. The process keeps its
    number, its open files and its arguments.
    """
    if not sys.platform.startswith("linux") or _TUNED in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    environment = os.environ | {_TUNED: "1", "GLIBC_TUNABLES": MALLOC_TUNABLES}
    os.execve(sys.executable, [sys.executable, "-m", "nestling", *sys.argv[1:]], environment)

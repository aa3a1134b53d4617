"""What must be settled before a process starts: how its threads wait and where its memory comes from.

Nothing here may import torch.
"""

from __future__ import annotations

import os
import sys

_TUNED = "NESTLING_TUNED"

# glibc hands every large tensor back to the system and asks for fresh zeroed pages the next time: 3.5 million page
# faults in three training steps. Kept and backed by huge pages, the same steps take three quarters of the time
# (measured, 2 cores, 135M parameters). https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_MALLOC = {
    "glibc.malloc.mmap_max": "0",
    "glibc.malloc.trim_threshold": str(1 << 40),
    "glibc.malloc.hugetlb": "1",
}


def peak_memory() -> int | None:
    """The most bytes this process has held in memory at once; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait for each other; before torch is loaded.

    Spinning threads starve when a neighbour is busy: on two cores every small operation took two scheduler ticks,
    7,760 us instead of 168 us for a [16, 576] x [576, 1536] product. Sleeping costs a few microseconds.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory() -> None:
    """Start this command again with an allocator that keeps what it has; for long computations on Linux.

    Returns at once where that is not possible, already done, or the user has set tunables. The process keeps its
    number, its open files and its arguments.
    """
    if not sys.platform.startswith("linux") or _TUNED in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    tunables = ":".join(f"{name}={value}" for name, value in _MALLOC.items())
    environment = os.environ | {_TUNED: "1", "GLIBC_TUNABLES": tunables}
    os.execve(sys.executable, [sys.executable, "-m", "nestling", *sys.argv[1:]], environment)

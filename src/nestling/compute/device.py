"""Which device, number format and thread count to compute with, chosen by measurement and then written down."""

from __future__ import annotations

import functools
import os
import statistics
import time
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from nestling.compute.process import spins
from nestling.compute.workers import Workers
from nestling.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTypeName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Hardware:
    """What a run computes with. It is part of a run's state: resuming on the same choice gives the same bits."""

    device: str
    dtype: str
    threads: int
    workers: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def apply(self) -> Hardware:
        """Set the process's thread count."""
        set_threads(self.threads)
        return self

    def side_by_side(self) -> Workers:
        """The workers that share the threads, the same ones every time."""
        return _workers(self.workers, self.threads // self.workers)

    @property
    def arithmetic(self) -> str:
        """Names what decides the last bits of results."""
        return f"{self.dtype}/{self.threads}/{self.workers}"


_workers = functools.cache(Workers)


def detect(dtype: DTypeName = "auto", threads: int = 0, workers: int = 0) -> Hardware:
    """Choose device, dtype, threads and workers for this machine; explicit values win.

    Workers are two where threads sleep while they wait, or where neighbours take from the cores; else one.

    Raises:
        ConfigError: more workers than threads, or several on an accelerator.
    """
    threads = threads or physical_cores()
    if workers > threads:
        raise ConfigError(
            f"{workers} workers cannot share {threads} threads.",
            where="hardware.workers",
            remedy="Lower hardware.workers or raise hardware.threads.",
        )
    set_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device != "cpu" and workers > 1:  # one thread of autograd serves a device, and would wait for itself
        raise ConfigError(
            f"several workers need a CPU, not {device}.", where="hardware.workers", remedy="Leave it out."
        )
    if not workers:  # more than two were never measured
        workers = 2 if device == "cpu" and threads % 2 == 0 and not (spins() and undisturbed(threads)) else 1
    return Hardware(device, faster_dtype(device) if dtype == "auto" else dtype, threads, workers)


def set_threads(count: int) -> None:
    """Threads of an operation, for the calling thread and those it starts."""
    torch.set_num_threads(count)
    torch.get_num_threads()  # a thread takes over the number when it first asks; later workers set another


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once where the system tells them apart."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def faster_dtype(device: str) -> str:
    """bfloat16 where matrix products in it are at least 1.3 times as fast as in float32, else float32."""
    rates = matrix_rates(device)
    return "bfloat16" if rates["bfloat16"] > 1.3 * rates["float32"] else "float32"


def matrix_rates(device: str, size: int = 512, turns: int = 10) -> dict[str, float]:
    """FLOP/s of a [size, size] x [size, 3 size] product by dtype.

    The dtypes are timed in turns and the fastest turn of each counts, so that a busy neighbour does not decide.
    """
    timed = [{dtype: _product_seconds(dtype, device, size) for dtype in DTYPES} for _ in range(turns + 2)]
    return {dtype: 6 * size**3 / min(turn[dtype] for turn in timed[2:]) for dtype in DTYPES}


def undisturbed(threads: int, tries: int = 5) -> bool:
    """Whether the threads get as much done sharing every operation as in two halves that work by themselves.

    They do, unless somebody else wants the cores: then every operation waits for the thread that was held up. With one
    of two cores taken, a step of fine-tuning lasts 2.4 times as long shared, 1.6 times in two workers (undisturbed 1
    and 1.05). Asked again for a few seconds: a neighbour who is only starting, such as our own server, does not count.
    """
    for number in range(tries):
        if number:
            time.sleep(1)
        if _shared_against_halves(threads) < 1.2:
            return True
    return False


def _shared_against_halves(threads: int, turns: int = 5) -> float:
    """Time of the same work by one worker with all threads over that of two with half of them each.

    Timed in turns on small products, which are what suffers.
    """
    weight = torch.ones(768, 768)

    def chain(_: int, rows: int) -> None:
        x = torch.ones(rows, 768)
        for _step in range(100):
            x = torch.nn.functional.linear(x, weight).tanh_()

    times: dict[int, list[float]] = {1: [], 2: []}
    for _turn in range(turns):
        for count, taken in times.items():
            start = time.perf_counter()
            _workers(count, threads // count).map(chain, [32 // count] * count)
            taken.append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[2])


def product_rate(hardware: Hardware, rows: int, inner: int, outer: int, seconds: float) -> float:
    """FLOP/s of [rows, inner] x [inner, outer] products, every worker at once for that long.

    On a CPU by the time that this process was given: what its neighbours take now may soon be free.
    """
    ones = lambda *shape: torch.ones(shape, device=hardware.device, dtype=hardware.torch_dtype)
    a, b = ones(rows, inner), ones(outer, inner)

    def multiply(_: int, limit: float) -> int:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < limit:
            torch.nn.functional.linear(a, b).sum().item()  # item() waits for an asynchronous device
            count += 1
        return count

    workers, on_cpu = hardware.side_by_side(), hardware.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    workers.map(multiply, [seconds / 4] * workers.count)  # the first products choose their kernels
    start = clock()
    count = sum(workers.map(multiply, [seconds] * workers.count))
    taken = (clock() - start) / (hardware.threads if on_cpu else 1)
    return count * 2 * rows * inner * outer / taken


def _product_seconds(dtype: str, device: str, size: int) -> float:
    a = torch.ones(size, size, device=device, dtype=DTYPES[dtype])
    b = torch.ones(3 * size, size, device=device, dtype=DTYPES[dtype])
    start = time.perf_counter()
    torch.nn.functional.linear(a, b).sum().item()  # item() waits for an asynchronous device
    return time.perf_counter() - start

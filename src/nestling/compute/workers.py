"""Threads that compute side by side, each with its share of the cores.

An operation shared by two cores ends when the slower one does, and a step of training is thousands of small ones: on a
machine with neighbours a third of the time goes by in waiting. Whole rows side by side meet only to add gradients. Two
rows of 1,024 tokens, forward and backward, took 6.9 s with two threads an operation and 4.7 s with two rows at once on
one thread each; 192 answers 25 s and 18 s (two cores, 135M parameters, bf16).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from nestling.compute.courtesy import make_way

Item = TypeVar("Item")
Result = TypeVar("Result")


def _politely(work: Callable[[int, Item], Result], worker: int, item: Item) -> Result:
    make_way()
    return work(worker, item)


class Workers:
    """``count`` threads; one means that the calling thread does everything itself.

    Args:
        count: how many compute at the same time.
        threads: how many threads each gives an operation.

    Attributes:
        stopping: set while a failed ``map`` waits for the others; long work should look at it and end.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        self.count, self.stopping = count, threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            self._pool = ThreadPoolExecutor(
                count, "worker", initializer=torch.set_num_threads, initargs=(threads,)
            )

    def map(self, work: Callable[[int, Item], Result], items: Sequence[Item]) -> list[Result]:
        """``[work(worker, item), ...]``: item i is always worker i % count's, each takes its own in their order.

        Who does what never depends on how long it takes, so that results are the same every time. Gradients are on or
        off in ``work`` as they are for the caller.
        """
        if self._pool is None:
            return [_politely(work, 0, item) for item in items]
        graded = torch.is_grad_enabled()

        def share(worker: int) -> list[Result]:
            with torch.set_grad_enabled(graded):
                done = []
                for item in items[worker :: self.count]:
                    if self.stopping.is_set():
                        break
                    done.append(_politely(work, worker, item))
                return done

        self.stopping.clear()
        futures: list[Future[list[Result]]] = []
        try:
            for worker in range(min(self.count, len(items))):
                futures.append(self._pool.submit(share, worker))
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()  # raises what one has raised, without waiting for the others
            shares = [future.result() for future in futures]
        except BaseException:  # Ctrl-C too: nobody may go on alone
            self.stopping.set()
            wait(futures)
            raise
        return [shares[i % self.count][i // self.count] for i in range(len(items))]

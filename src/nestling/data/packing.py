"""Which samples share a row: bins filled without splitting a sample, and the order of an epoch."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence

from nestling.errors import DataError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put every item into exactly one bin of at most ``capacity``, whole.

    Best-fit decreasing: the longest first, each into the fullest bin it fits; at most 11/9 of the fewest
    possible bins plus a constant (Johnson et al. 1974). The result depends on the arguments alone. Items of
    equal length go in their order, so shuffling them first varies the company they keep.

    Args:
        lengths: tokens of each item, at least 1.
        capacity: tokens of a bin.

    Returns:
        the bins, each the ascending indices of its items, in the order of their first item.

    Raises:
        DataError: an item is empty, or longer than ``capacity``.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise DataError(
                f"a sample of {length} tokens does not go into rows of {capacity}.",
                where=f"sample {index}",
                remedy="Raise the context length, or leave out what is longer and say so."
                if length
                else None,
            )
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, bin), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], 0))
        if place < len(room):
            free, bin_index = room.pop(place)
            bins[bin_index].append(index)
        else:
            free, bin_index = capacity, len(bins)
            bins.append([index])
        insort(room, (free - lengths[index], bin_index))
    return sorted(sorted(items) for items in bins)


def deal(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Put every item into one of at most ``parts`` bins of about equal length; none is left empty.

    Longest first, each into the shortest bin (Graham 1969). Returns the ascending indices of each bin's items.
    """
    bins: list[list[int]] = [[] for _ in range(min(parts, len(lengths)))]
    filled = [0] * len(bins)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = filled.index(min(filled))
        bins[least].append(index)
        filled[least] += max(1, lengths[index])
    return [sorted(items) for items in bins]


def deal_rows(lengths: Sequence[int], row_tokens: int, workers: int) -> list[list[int]]:
    """Put every item into a row; rows are of about equal length, and each worker gets as many.

    There are ``workers`` rows, or twice, three times as many where they would hold more than about ``row_tokens``.
    """
    rounds = -(-sum(lengths) // (row_tokens * workers))
    return deal(lengths, rounds * workers)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A shuffle of ``range(count)`` that depends on (seed, epoch) alone, on every machine and version.

    Sorted by a hash of each index: no library promises that its shuffle stays the same.
    """

    def draw(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=16).digest()

    return sorted(range(count), key=draw)


def walk(count: int, seed: int, start: int, stop: int) -> list[int]:
    """Steps ``start`` to ``stop`` of an endless walk through ``range(count)``, in a new order each time around."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in range(start, stop):
        epoch, at = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = epoch_order(count, seed, epoch)
        chosen.append(orders[epoch][at])
    return chosen

"""Bins: everything once, nothing split, nearly as few as can be; the order of an epoch."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.data.packing import epoch_order, pack
from nestling.errors import DataError


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 50).flatmap(lambda c: st.tuples(st.lists(st.integers(1, c), max_size=60), st.just(c))))
def test_every_item_once_and_no_bin_too_full(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    bins = pack(lengths, capacity)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    assert all(items and sum(lengths[i] for i in items) <= capacity for items in bins)
    assert bins == pack(lengths, capacity) == sorted(map(sorted, bins))
    full = [sum(lengths[i] for i in items) for items in bins]
    assert all(a + b > capacity for a, b in itertools.combinations(full, 2)), "two bins could be one"


def fewest_bins(lengths: list[int], capacity: int) -> int:
    """By trying everything; the oracle for small cases."""
    best = len(lengths)

    def place(rest: list[int], bins: tuple[int, ...]) -> None:
        nonlocal best
        if len(bins) >= best:
            return
        if not rest:
            best = len(bins)
            return
        for i, used in enumerate(bins):
            if used + rest[0] <= capacity:
                place(rest[1:], (*bins[:i], used + rest[0], *bins[i + 1 :]))
        place(rest[1:], (*bins, rest[0]))

    place(sorted(lengths, reverse=True), ())
    return best


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_it_is_close_to_the_fewest_bins(lengths: list[int]) -> None:
    assert len(pack(lengths, 12)) <= 11 / 9 * fewest_bins(lengths, 12) + 6 / 9


def test_ten_thousand_conversations_fill_their_rows() -> None:
    draw = random.Random(0)
    lengths = [min(512, max(8, int(draw.lognormvariate(4.5, 0.7)))) for _ in range(10_000)]
    assert len(pack(lengths, 1024)) <= math.ceil(sum(lengths) / 1024) * 1.01


@pytest.mark.parametrize(("lengths", "place"), [([5, 11], "sample 1"), ([5, 0], "sample 1")])
def test_items_that_do_not_fit_are_named(lengths: list[int], place: str) -> None:
    with pytest.raises(DataError, match=f"{place}: a sample of {lengths[1]} tokens"):
        pack(lengths, 10)


@given(st.integers(0, 50), st.integers(-(2**40), 2**40), st.integers(0, 100))
def test_an_epoch_is_a_permutation_that_seed_and_epoch_fix(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed, epoch)


def test_epochs_and_seeds_differ_and_the_order_never_changes_between_versions() -> None:
    assert len({tuple(epoch_order(20, seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert epoch_order(8, 0, 0) == [7, 0, 1, 5, 3, 4, 2, 6]

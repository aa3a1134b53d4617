"""The same random numbers and the same share of the processor in every test."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # tests side by side are each other's busy neighbours

import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where two processes share the files, neither waits for the other's last one."""
    slow = {item.path.name for item in items if item.get_closest_marker("slow")}
    order = ["test_workflow.py", *sorted(slow - {"test_workflow.py"})]
    items.sort(key=lambda item: order.index(item.path.name) if item.path.name in slow else len(order))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a command tried in this process may have taken every core

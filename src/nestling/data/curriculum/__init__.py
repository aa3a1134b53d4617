"""The curriculum: what a model is raised on and asked about, from hand-written content and seeded filling."""

from __future__ import annotations

from nestling.data.curriculum.generator import Item, demonstrations, items, split_of
from nestling.data.curriculum.schema import (
    SPLITS,
    Behaviour,
    Curriculum,
    Row,
    Split,
    Template,
    content_digest,
    load,
)

__all__ = [
    "SPLITS",
    "Behaviour",
    "Curriculum",
    "Item",
    "Row",
    "Split",
    "Template",
    "content_digest",
    "demonstrations",
    "items",
    "load",
    "split_of",
]

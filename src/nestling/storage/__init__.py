"""The database of answers and judgments: SQLite beside the versions, or PostgreSQL by URL."""

from __future__ import annotations

from nestling.storage.database import Database, open_database
from nestling.storage.schema import (
    Base,
    ChatSession,
    DeskAnswer,
    DeskItem,
    DeskSkip,
    Generation,
    ImportedFile,
    Judgment,
    RankedAnswer,
    Withdrawal,
)

__all__ = [
    "Base",
    "ChatSession",
    "Database",
    "DeskAnswer",
    "DeskItem",
    "DeskSkip",
    "Generation",
    "ImportedFile",
    "Judgment",
    "RankedAnswer",
    "Withdrawal",
    "open_database",
]

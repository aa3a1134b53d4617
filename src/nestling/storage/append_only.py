"""Triggers that let the database itself refuse to change or delete a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def refuse_changes(op: Any, tables: Iterable[str], key: str = "id = NEW.id", again: bool = False) -> None:
    """Add the triggers to ``tables``, in a migration.

    Args:
        op: Alembic's operations.
        key: says that a row which is there has the same key as the new one.
        again: the tables had them before. SQLite, which makes an altered table anew, has dropped them; PostgreSQL not.
    """
    dialect = op.get_context().dialect.name
    for table in tables:
        if dialect == "sqlite":
            _sqlite(op, table, key)
        elif dialect == "postgresql" and not again:
            op.execute(
                f"CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )


def _sqlite(op: Any, table: str, key: str) -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(f"DROP TRIGGER IF EXISTS {table}_refuse_{change.lower()}")
        op.execute(
            f"CREATE TRIGGER {table}_refuse_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )
    # INSERT OR REPLACE deletes without firing the trigger above.
    op.execute(f"DROP TRIGGER IF EXISTS {table}_refuse_replace")
    op.execute(
        f"CREATE TRIGGER {table}_refuse_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {key}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
    )

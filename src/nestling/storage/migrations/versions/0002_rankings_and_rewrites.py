"""Judgments of more than two answers, and better answers that people wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KIND_AND_VALUE = (
    "(kind = 'thumb' AND value IN ('up', 'down', 'none') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'vote' AND value IN ('a', 'b', 'tie', 'both_bad') AND other_generation_id IS NOT NULL"
    " AND other_generation_id <> generation_id AND text IS NULL) OR "
    "(kind = 'ranking' AND value IN ('ranked', 'all_bad') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'rewrite' AND value = 'rewritten' AND other_generation_id IS NULL AND text IS NOT NULL AND text <> '')"
)


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    # SQLite cannot change a constraint: there the table is made anew, and its triggers with it.
    with op.batch_alter_table("judgments") as table:
        table.add_column(sa.Column("text", sa.Text))
        table.drop_constraint("kind_and_value", type_="check")
        table.create_check_constraint("kind_and_value", KIND_AND_VALUE)
    op.create_table(
        "ranked_answers",
        sa.Column("judgment_id", sa.Integer, sa.ForeignKey("judgments.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("generation_id", sa.String(64), sa.ForeignKey("generations.id"), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.UniqueConstraint("judgment_id", "generation_id", name="once_a_judgment"),
        sa.CheckConstraint("rank >= 1 AND position >= 0", name="rank_and_position"),
    )
    if dialect == "sqlite":
        _refuse_changes_sqlite("judgments", "id = NEW.id")
        _refuse_changes_sqlite("ranked_answers", "judgment_id = NEW.judgment_id AND position = NEW.position")
    elif dialect == "postgresql":
        op.execute(
            "CREATE TRIGGER ranked_answers_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ranked_answers "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def _refuse_changes_sqlite(table: str, same_key: str) -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_refuse_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )
    # INSERT OR REPLACE deletes without firing the trigger above.
    op.execute(
        f"CREATE TRIGGER {table}_refuse_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same_key}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
    )

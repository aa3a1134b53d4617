"""Judgments from files, demonstrations without a shown answer, and until where a person took back what they said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nestling.storage.append_only import refuse_changes

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KIND_AND_VALUE = (
    "(kind = 'thumb' AND value IN ('up', 'down', 'none') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'vote' AND value IN ('a', 'b', 'tie', 'both_bad') AND other_generation_id IS NOT NULL"
    " AND other_generation_id <> generation_id AND text IS NULL) OR "
    "(kind = 'ranking' AND value IN ('ranked', 'all_bad') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'score' AND value IN ('1', '2', '3', '4', '5') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'rewrite' AND value = 'rewritten' AND other_generation_id IS NULL AND text IS NOT NULL AND text <> '') OR "
    "(kind = 'demonstration' AND value = 'written' AND other_generation_id IS NULL AND text IS NULL)"
)


def upgrade() -> None:
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    with op.batch_alter_table("judgments") as table:
        table.add_column(sa.Column("import_id", sa.Integer))
        table.add_column(sa.Column("import_row", sa.String(64)))
        table.create_foreign_key("of_a_file", "imports", ["import_id"], ["id"])
        table.create_unique_constraint("once_from_files", ["import_row"])
        table.drop_constraint("kind_and_value", type_="check")
        table.create_check_constraint("kind_and_value", KIND_AND_VALUE)
    op.add_column("withdrawals", sa.Column("last_judgment", sa.Integer))
    refuse_changes(op, ("judgments",), again=True)
    refuse_changes(op, ("imports",))

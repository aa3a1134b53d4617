"""Who a person is, scores, what a judgment replaces, and judgments that people take back for good."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nestling.storage.append_only import refuse_changes

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KIND_AND_VALUE = (
    "(kind = 'thumb' AND value IN ('up', 'down', 'none') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'vote' AND value IN ('a', 'b', 'tie', 'both_bad') AND other_generation_id IS NOT NULL"
    " AND other_generation_id <> generation_id AND text IS NULL) OR "
    "(kind = 'ranking' AND value IN ('ranked', 'all_bad') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'score' AND value IN ('1', '2', '3', '4', '5') AND other_generation_id IS NULL AND text IS NULL) OR "
    "(kind = 'rewrite' AND value = 'rewritten' AND other_generation_id IS NULL AND text IS NOT NULL AND text <> '')"
)


def upgrade() -> None:
    op.add_column("sessions", sa.Column("kind", sa.String(16), nullable=False, server_default="claimed"))
    op.add_column("generations", sa.Column("card_hash", sa.String(64)))
    with op.batch_alter_table("judgments") as table:
        table.add_column(sa.Column("blinded", sa.Boolean))
        table.add_column(sa.Column("supersedes", sa.Integer))
        table.add_column(sa.Column("desk_item_id", sa.Integer))
        table.drop_constraint("kind_and_value", type_="check")
        table.create_check_constraint("kind_and_value", KIND_AND_VALUE)
    op.create_table(
        "withdrawals",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("judgment_id", sa.Integer, sa.ForeignKey("judgments.id"), index=True),
        sa.Column("session_id", sa.String(64), sa.ForeignKey("sessions.id"), index=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(judgment_id IS NULL) <> (session_id IS NULL)", name="of_one_judgment_or_one_person"
        ),
    )
    op.create_table(
        "desk_items",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("source", sa.String(64), nullable=False, unique=True),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("gold", sa.JSON),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "desk_answers",
        sa.Column("item_id", sa.Integer, sa.ForeignKey("desk_items.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("generation_id", sa.String(64), sa.ForeignKey("generations.id"), nullable=False),
    )
    op.create_table(
        "desk_skips",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("item_id", sa.Integer, sa.ForeignKey("desk_items.id"), nullable=False, index=True),
        sa.Column("session_id", sa.String(64), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("reason", sa.String(400), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    refuse_changes(op, ("judgments",), again=True)
    refuse_changes(op, ("withdrawals", "desk_items", "desk_skips"))
    refuse_changes(op, ("desk_answers",), key="item_id = NEW.item_id AND position = NEW.position")

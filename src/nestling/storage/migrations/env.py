"""Alembic's entry: runs the migrations on the connection handed in, or prints their SQL."""

from __future__ import annotations

from alembic import context

from nestling.storage.schema import Base

connection = context.config.attributes.get("connection")
if connection is not None:
    context.configure(connection=connection, target_metadata=Base.metadata)
else:
    context.configure(dialect_name=context.config.attributes["dialect"], as_sql=True)
with context.begin_transaction():
    context.run_migrations()

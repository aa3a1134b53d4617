"""The tables: who spoke, what was answered, how it was judged.

Nothing here is particular to SQLite. Rows are only ever added; the first migration makes the database refuse
updates and deletions of generations and judgments.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC, also where the database forgets time zones, as SQLite does."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """The one base of every table."""


class ChatSession(Base):
    """One person's browser, terminal or API client; judgments are split by it into training and test."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=_now)


class Generation(Base):
    """One answer and all that is needed to give it again.

    ``messages`` is the prompt, ``sampling`` the settings without the seed; ``finish_reason`` is "stop",
    "length" or "cancelled".
    """

    __tablename__ = "generations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    conversation_id: Mapped[str] = mapped_column(String(64), index=True)
    session_id: Mapped[str | None] = mapped_column(ForeignKey("sessions.id"))
    version: Mapped[str] = mapped_column(String(64), index=True)
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    answer: Mapped[str] = mapped_column(Text)
    sampling: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int] = mapped_column(BigInteger)
    finish_reason: Mapped[str] = mapped_column(String(16))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=_now)


class Judgment(Base):
    """What a person said about answers to one prompt.

    - thumb: ``value`` is "up", "down" or "none" (taken back).
    - vote: "a", "b", "tie" or "both_bad", where a is ``generation_id``, shown first or on the left, and b
      ``other_generation_id``.
    - ranking: "ranked", or "all_bad" where none of them is good; ``answers`` holds all in the order they were shown
      in, ``generation_id`` is the first of them.
    - rewrite: "rewritten"; ``text`` is the better answer that the person wrote.

    Changing one's mind adds a row; a session's newest row about the same answers counts.
    """

    __tablename__ = "judgments"
    __table_args__ = (
        CheckConstraint(
            "(kind = 'thumb' AND value IN ('up', 'down', 'none') AND other_generation_id IS NULL AND text IS NULL) OR "
            "(kind = 'vote' AND value IN ('a', 'b', 'tie', 'both_bad') AND other_generation_id IS NOT NULL"
            " AND other_generation_id <> generation_id AND text IS NULL) OR "
            "(kind = 'ranking' AND value IN ('ranked', 'all_bad') AND other_generation_id IS NULL AND text IS NULL) OR "
            "(kind = 'rewrite' AND value = 'rewritten' AND other_generation_id IS NULL AND text IS NOT NULL"
            " AND text <> '')",
            name="kind_and_value",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(16))
    generation_id: Mapped[str] = mapped_column(ForeignKey("generations.id"), index=True)
    other_generation_id: Mapped[str | None] = mapped_column(ForeignKey("generations.id"))
    value: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    session_id: Mapped[str | None] = mapped_column(ForeignKey("sessions.id"))
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=_now)
    text: Mapped[str | None] = mapped_column(Text)
    answers: Mapped[list[RankedAnswer]] = relationship(order_by="RankedAnswer.position")


class RankedAnswer(Base):
    """One answer of a ranking: where it was shown, counted from 0, and its rank: 1 is the best, equal ranks a tie."""

    __tablename__ = "ranked_answers"
    __table_args__ = (
        UniqueConstraint("judgment_id", "generation_id", name="once_a_judgment"),
        CheckConstraint("rank >= 1 AND position >= 0", name="rank_and_position"),
    )

    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgments.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    generation_id: Mapped[str] = mapped_column(ForeignKey("generations.id"))
    rank: Mapped[int]
    generation: Mapped[Generation] = relationship()

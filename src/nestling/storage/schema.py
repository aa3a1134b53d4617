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
    Float,
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
    """A person, as far as it is known who speaks; judgments are split by it into training and test.

    ``kind``: "account" has shown its token, "browser" an identity that this server signed, "imported" stands in
    another program's export; "claimed" is a name that anybody may give.
    """

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())
    kind: Mapped[str] = mapped_column(String(16), default="claimed", server_default="claimed")


class Generation(Base):
    """One answer and all that is needed to give it again.

    ``messages`` is the prompt, ``sampling`` the settings without the seed; ``finish_reason`` is "stop",
    "length" or "cancelled"; ``card_hash`` is of the version's card as it was.
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
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())
    card_hash: Mapped[str | None] = mapped_column(String(64))


class Judgment(Base):
    """What a person said about answers to one prompt.

    - thumb: ``value`` is "up", "down" or "none" (taken back).
    - vote: "a", "b", "tie" or "both_bad", where a is ``generation_id``, shown first or on the left, and b
      ``other_generation_id``.
    - ranking: "ranked", or "all_bad" where none of them is good; ``answers`` holds all in the order they were shown
      in, ``generation_id`` is the first of them.
    - rewrite: "rewritten"; ``text`` is the better answer that the person wrote.
    - score: "1" (bad) to "5" (good), for one answer by itself.
    - demonstration: "written"; the answer is itself what a person wrote, and none that was shown.

    Changing one's mind adds a row, which ``supersedes`` the earlier one; a person's newest row about the same answers
    counts. ``blinded``: the person could not see which version gave which answer. ``desk_item_id``: it was asked for at
    the desk. ``import_id``: it was made elsewhere and came in a file; ``import_row`` is a hash of what it says there,
    so that no file brings it twice.
    """

    __tablename__ = "judgments"
    __table_args__ = (
        CheckConstraint(
            "(kind = 'thumb' AND value IN ('up', 'down', 'none') AND other_generation_id IS NULL AND text IS NULL) OR "
            "(kind = 'vote' AND value IN ('a', 'b', 'tie', 'both_bad') AND other_generation_id IS NOT NULL"
            " AND other_generation_id <> generation_id AND text IS NULL) OR "
            "(kind = 'ranking' AND value IN ('ranked', 'all_bad') AND other_generation_id IS NULL AND text IS NULL) OR "
            "(kind = 'score' AND value IN ('1', '2', '3', '4', '5') AND other_generation_id IS NULL"
            " AND text IS NULL) OR "
            "(kind = 'rewrite' AND value = 'rewritten' AND other_generation_id IS NULL AND text IS NOT NULL"
            " AND text <> '') OR "
            "(kind = 'demonstration' AND value = 'written' AND other_generation_id IS NULL AND text IS NULL)",
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
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())
    text: Mapped[str | None] = mapped_column(Text)
    blinded: Mapped[bool | None]
    supersedes: Mapped[int | None]
    desk_item_id: Mapped[int | None]
    import_id: Mapped[int | None] = mapped_column(ForeignKey("imports.id"))
    import_row: Mapped[str | None] = mapped_column(String(64), unique=True)
    answers: Mapped[list[RankedAnswer]] = relationship(order_by="RankedAnswer.position")
    file: Mapped[ImportedFile | None] = relationship()


class ImportedFile(Base):
    """A file of judgments that were made elsewhere: its name and the SHA-256 of its content, which comes once."""

    __tablename__ = "imports"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())


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


class Withdrawal(Base):
    """A judgment, or all that a person had said, taken back for good: no later training set may hold it.

    ``last_judgment`` is the person's newest one then: what they say afterwards counts again. It is None in rows of
    earlier releases, whose moment says the same.
    """

    __tablename__ = "withdrawals"
    __table_args__ = (
        CheckConstraint(
            "(judgment_id IS NULL) <> (session_id IS NULL)", name="of_one_judgment_or_one_person"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    judgment_id: Mapped[int | None] = mapped_column(ForeignKey("judgments.id"), index=True)
    session_id: Mapped[str | None] = mapped_column(ForeignKey("sessions.id"), index=True)
    last_judgment: Mapped[int | None]
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())


class DeskItem(Base):
    """Answers to one prompt that wait to be judged.

    ``source`` names where it came from, once; ``priority`` is higher where the reward model is less sure; ``gold`` are
    the right ranks by position, where they are known, to see how far a rater can be relied on.
    """

    __tablename__ = "desk_items"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source: Mapped[str] = mapped_column(String(64), unique=True)
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    priority: Mapped[float] = mapped_column(Float)
    gold: Mapped[list[int] | None] = mapped_column(JSON)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())
    answers: Mapped[list[DeskAnswer]] = relationship(order_by="DeskAnswer.position")


class DeskAnswer(Base):
    """One answer of an item, in the order they are shown."""

    __tablename__ = "desk_answers"

    item_id: Mapped[int] = mapped_column(ForeignKey("desk_items.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    generation_id: Mapped[str] = mapped_column(ForeignKey("generations.id"))
    generation: Mapped[Generation] = relationship()


class DeskSkip(Base):
    """A person could not or would not judge an item, and why."""

    __tablename__ = "desk_skips"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("desk_items.id"), index=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"))
    reason: Mapped[str] = mapped_column(String(400))
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=lambda: _now())

"""The database: built by its migrations, append-only, never blocked by a reader, safe after kill -9."""

from __future__ import annotations

import io
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from nestling.errors import ConfigError, WorkspaceError
from nestling.storage import Base, ChatSession, Database, Generation, Judgment, RankedAnswer, open_database
from nestling.storage.database import migration_config


def generation(number: int) -> Generation:
    return Generation(
        id=f"g{number}",
        conversation_id="c",
        version="v1-base",
        messages=[{"role": "user", "content": "Grüße 你好"}],
        answer="Hi",
        sampling={"temperature": 0.5},
        seed=2**62,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=1,
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path / "nest" / "feedback.sqlite")
    yield database
    database.close()


def test_migrations_from_empty_give_the_declared_schema(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_judgments_of_the_first_release_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    database = open_database(path)
    with database.write() as session:
        session.add(generation(1))
    with database.engine.begin() as connection:
        config = migration_config()
        config.attributes["connection"] = connection
        for statement in ("DROP TABLE desk_skips", "DROP TABLE desk_answers", "DROP TABLE desk_items",
                          "DROP TABLE withdrawals", "DROP TABLE ranked_answers", "DROP TABLE judgments",
                          "DROP TABLE imports", "DROP TABLE generations", "DROP TABLE sessions",
                          "DROP TABLE alembic_version"):  # fmt: skip
            connection.exec_driver_sql(statement)
        command.upgrade(config, "0001")
        connection.exec_driver_sql(
            "INSERT INTO generations VALUES ('g1', 'c', NULL, 'v1', '[]', 'Hi', '{}', 1, 'stop', 1, 1, '2026-01-01')"
        )
        connection.exec_driver_sql(
            "INSERT INTO judgments VALUES (7, 'thumb', 'g1', NULL, 'up', 'kind', NULL, '2026-01-01')"
        )
    database.close()
    database = open_database(path)
    with database.read() as session:
        row = session.scalars(select(Judgment)).one()
        assert (row.id, row.kind, row.value, row.reason, row.text) == (7, "thumb", "up", "kind", None)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()


def test_only_its_owner_may_read_what_people_wrote(database: Database) -> None:
    folder = Path(str(database.engine.url.database)).parent
    with database.write() as session:
        session.add(generation(1))
    modes = {path.name: path.stat().st_mode & 0o077 for path in folder.glob("feedback.sqlite*")}
    assert modes == {f"feedback.sqlite{end}": 0 for end in ("", "-wal", "-shm")}


def test_rows_survive_closing_and_opening(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    database = open_database(tmp_path / "a 100%.sqlite")
    with database.write() as session:
        session.add(generation(1))
    database.close()
    database = open_database(tmp_path / "a 100%.sqlite")
    with database.read() as session:
        row = session.scalars(select(Generation)).one()
        assert (row.messages[0]["content"], row.seed) == ("Grüße 你好", 2**62)
        assert before <= row.created <= datetime.now(UTC)
    database.close()


@pytest.mark.parametrize("table", ["generations", "judgments", "ranked_answers"])
@pytest.mark.parametrize(
    "change", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}", "REPLACE INTO {0} SELECT * FROM {0}"]
)
def test_judgments_and_answers_are_append_only(database: Database, table: str, change: str) -> None:
    with database.write() as session:
        session.add(generation(1))
        session.flush()
        ranked = [RankedAnswer(position=0, generation_id="g1", rank=1)]
        session.add(Judgment(kind="ranking", generation_id="g1", value="ranked", answers=ranked))
    # Not even another program may change a row.
    raw = sqlite3.connect(str(database.engine.url.database))
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(change.format(table, "rank" if table == "ranked_answers" else "id"))
    raw.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "thumb", "value": "sideways"},
        {"kind": "thumb", "value": "up", "other_generation_id": "g2"},
        {"kind": "vote", "value": "a"},
        {"kind": "vote", "value": "a", "other_generation_id": "g1"},
        {"kind": "thumb", "value": "up", "generation_id": "missing"},
        {"kind": "thumb", "value": "up", "text": "words"},
        {"kind": "rewrite", "value": "rewritten"},
        {"kind": "rewrite", "value": "rewritten", "text": ""},
        {"kind": "ranking", "value": "best"},
    ],
)
def test_impossible_judgments_are_refused(database: Database, bad: dict[str, str]) -> None:
    with database.write() as session:
        session.add_all([generation(1), generation(2)])
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(insert(Judgment).values({"generation_id": "g1", "reason": "", **bad}))
    with database.read() as session:
        assert session.scalars(select(Judgment)).all() == []


def test_a_long_reader_blocks_no_writer(database: Database) -> None:
    with database.write() as session:
        session.add_all(generation(number) for number in range(20))
    with database.read() as reader:
        rows = iter(reader.scalars(select(Generation).execution_options(yield_per=2)))
        next(rows)
        started = time.monotonic()
        with database.write() as session:
            session.add(generation(99))
        assert time.monotonic() - started < 1
        assert len(list(rows)) == 19  # the reader keeps its snapshot


def test_writers_wait_for_each_other(database: Database) -> None:
    def add(start: int) -> None:
        for number in range(start, start + 10):
            with database.write() as session:
                session.get(
                    ChatSession, "nobody"
                )  # a read first is what makes SQLite fail when not begun to write
                session.add(generation(number))

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert len(session.scalars(select(Generation)).all()) == 40


def test_acknowledged_rows_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from nestling.storage import ChatSession, open_database\n"
        "database = open_database(sys.argv[1])\n"
        "for n in itertools.count():\n"
        "    with database.write() as session: session.add(ChatSession(id=str(n)))\n"
        "    print(n, flush=True)"
    )
    path = tmp_path / "feedback.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(20):
        acknowledged = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    acknowledged += len(writer.stdout.read().splitlines())
    writer.wait()
    database = open_database(path)
    with database.read() as session:
        ids = {int(row.id) for row in session.scalars(select(ChatSession))}
    assert set(range(acknowledged + 1)) <= ids
    database.close()


def test_unusable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("It was a dark and stormy night. " * 100)
    with pytest.raises(WorkspaceError, match=r"novel\.txt: .*not a database.*holds a nestling database"):
        open_database(tmp_path / "novel.txt")
    with pytest.raises(ConfigError, match=r"no driver.*foo"):
        open_database("foo://host/name")
    open_database(tmp_path / "newer.sqlite").close()
    raw = sqlite3.connect(tmp_path / "newer.sqlite")
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    with pytest.raises(WorkspaceError, match="newer release"):
        open_database(tmp_path / "newer.sqlite")


def test_the_schema_can_be_made_in_postgresql() -> None:
    config = migration_config()
    config.output_buffer = io.StringIO()
    config.attributes["dialect"] = "postgresql"
    command.upgrade(config, "head", sql=True)
    sql = config.output_buffer.getvalue()
    assert "created TIMESTAMP WITH TIME ZONE" in sql and "seed BIGINT" in sql and "id SERIAL" in sql
    assert "BEFORE UPDATE OR DELETE OR TRUNCATE ON judgments" in sql

"""Opening the database: connection settings, migrations, and errors a person can act on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import Session

from nestling.errors import ConfigError, WorkspaceError

_BUSY_TIMEOUT_MS = 10_000


class Database:
    """An open, migrated database. Safe to share between threads; each block is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite: a writing transaction takes the write lock when it begins, so that it waits for another
        # writer instead of failing halfway. Other databases ignore the option.
        self._writing = engine.execution_options(immediate=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent snapshot to read from. However long it lasts, writers go on."""
        with _readable_errors(self.engine), Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is on disk when the block ends, or did not happen."""
        with _readable_errors(self.engine), Session(self._writing) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_database(place: str | Path, *, create: bool = True) -> Database:
    """Open the database at a path (SQLite) or URL, bringing its schema up to date.

    A file that is not there is made, unless ``create`` is False.

    SQLite runs in WAL mode with ``synchronous=FULL``: readers and the writer do not block each other, and a
    commit is on disk when it returns. PostgreSQL: ``postgresql+psycopg://user:password@host/name``.

    Raises:
        ConfigError: the URL cannot be used, or its driver is not installed.
        WorkspaceError: the database is not there, cannot be opened, is no database, or was written by a newer release.
    """
    if not create and "://" not in str(place) and not Path(place).exists():
        remedy = "Check the name; a server's judgments are in feedback.sqlite of its workspace."
        raise WorkspaceError("there is no database.", where=str(place), remedy=remedy)
    engine = _create_engine(str(place))
    try:
        with _readable_errors(engine), _migrating(engine) as connection:
            migrate(connection)
    except BaseException:  # Ctrl-C too: an engine nobody holds would keep the file open
        engine.dispose()
        raise
    return Database(engine)


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """A transaction in which tables may be made anew.

    SQLite refuses to drop a table that others refer to, and to stop minding while a transaction is open
    (https://www.sqlite.org/lang_altertable.html, section 7): references are checked at the end instead.
    """
    with engine.execution_options(immediate=True).connect() as connection:
        driver = connection.connection.dbapi_connection if engine.dialect.name == "sqlite" else None
        if driver is not None:
            driver.cursor().execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                if driver is not None and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise WorkspaceError(
                        "rows of the database refer to rows that are not there.",
                        where=_place(engine), remedy="Take the database's last good copy.",
                    )  # fmt: skip
        finally:
            if driver is not None:
                driver.cursor().execute("PRAGMA foreign_keys = ON")


def migrate(connection: Connection) -> None:
    """Bring the schema up to date inside the connection's transaction.

    Raises:
        WorkspaceError: when the schema is newer than this release knows.
    """
    config = migration_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise WorkspaceError(
            "the database was written by a newer release of nestling.",
            where=_place(connection.engine),
            remedy="Update nestling, or use another database.",
        ) from error


def migration_config() -> Config:
    """Alembic's configuration for the migrations inside this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _create_engine(place: str) -> Engine:
    if "://" not in place:
        path = Path(place).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.touch(mode=0o600)  # it will hold what people write; SQLite's other files take after it
        except OSError as error:
            raise WorkspaceError(
                f"cannot make the database: {error.strerror}.",
                where=str(path.parent),
                remedy="Choose a place that you may write to, with --workspace or NESTLING_HOME.",
            ) from error
        place = str(sqlalchemy.URL.create("sqlite", database=str(path)))
    try:
        engine = create_engine(place)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"no driver for this database: {error}.",
            remedy="For PostgreSQL: pip install 'psycopg[binary]', and write postgresql+psycopg://user:password@host/name.",
        ) from error
    except ArgumentError as error:
        raise ConfigError(
            "the database URL cannot be read.", remedy="Write postgresql+psycopg://user:password@host/name."
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    # The driver's own transaction handling would commit around DDL; ours begins explicitly.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _readable_errors(engine: Engine) -> Iterator[None]:
    """Say where the database is and what the driver said when it cannot be reached, read or written."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:  # the latter while a connection is being set up
        if isinstance(error, IntegrityError):
            raise  # the caller's rows, not the database's state
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise WorkspaceError(
            f"the database cannot be used: {str(cause).strip().splitlines()[0]}.",
            where=_place(engine),
            remedy="Check that the place exists, is writable, has room and holds a nestling database.",
        ) from error


def _place(engine: Engine) -> str:
    return engine.url.database or "" if engine.dialect.name == "sqlite" else engine.url.render_as_string()

"""The key service's database in a SQLite file: how it is opened, and kept in view as long as it is.

`database` uses it. Nothing is read from, or written to, a file that the path no longer leads to: what is committed
there is a revocation that is nowhere, once the service is started again.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from authsvc.errors import StoreLostError, StoreOverwrittenError, StoreRefusedError, StoreUnavailableError
from authsvc.runtime.sqlite_files import FileOverwrittenError, FilesLostError, SqliteFiles

_BUSY_TIMEOUT_SECONDS = 5
_LATELY_SECONDS = 0.05
"""For so long a look at the files does for all reads, of which one costs little more than a look."""


class Standing:
    """Whether the database is lost, as far as anybody has looked: for those who ask too often to look themselves."""

    __slots__ = ("is_lost",)

    def __init__(self) -> None:
        self.is_lost = False


class SqliteFile:
    """The one file that the process reads and writes. It never turns to another one; that is for the next start."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Open nothing yet."""
        self._files = SqliteFiles(path)
        self._monotonic = monotonic
        self._opening = Lock()
        self._anchor: sqlite3.Connection | None = None
        """Open from first to last, so that SQLite does not remove the WAL between two connections."""
        self._lost: StoreLostError | None = None
        self.standing = Standing()
        self._look_again_at = float("-inf")

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._files.path

    @property
    def is_open(self) -> bool:
        """Whether it is kept in view."""
        return self._anchor is not None

    def open(self) -> None:
        """Open the file, and make it if there is none, for this user only: what SQLite puts beside it takes its mode.

        Waits for whoever has it locked. Raises StoreRefusedError beside the WAL of a file that is gone, OSError,
        sqlite3.Error.
        """
        with self._opening:
            if self._anchor is None:
                self._anchor = self._open()

    def check(self) -> None:
        """Raise StoreLostError when what is read or written now is not what the next start would find.

        Raises StoreUnavailableError where nobody can tell now.
        """
        if self._anchor is None:
            return
        lost: StoreLostError | None = None
        try:
            self._files.check()
        except FilesLostError as error:
            lost = (StoreOverwrittenError if isinstance(error, FileOverwrittenError) else StoreLostError)(str(error))
        except (sqlite3.OperationalError, OSError) as error:
            raise StoreUnavailableError(f"{self.path} cannot be read: {error}") from error
        self._lost, self.standing.is_lost = lost, lost is not None
        self._look_again_at = self._monotonic() + _LATELY_SECONDS
        if lost is not None:
            raise lost

    def check_lately(self) -> None:
        """Do the same for reads, for which a look of a moment ago does."""
        if self._monotonic() >= self._look_again_at:
            self.check()
        elif self._lost is not None:
            raise type(self._lost)(self._lost.reason)

    def connect(self) -> sqlite3.Connection:
        """Open one more connection, which fails where it would have to wait; raise sqlite3.Error."""
        if self._anchor is None:
            raise sqlite3.OperationalError("the file is not open yet")
        return sqlite3.connect(_uri(self.path), timeout=0, isolation_level=None, uri=True)

    def close(self) -> None:
        """Close the last connection. All others have to be closed by then."""
        if self._anchor is not None:
            self._files.settle()
            self._anchor.close()
            self._anchor = None
            self._files.close()

    def _open(self) -> sqlite3.Connection:
        if lone_wal := self._files.lone_wal():
            raise StoreRefusedError(lone_wal)
        self.path.touch(mode=0o600)
        anchor = sqlite3.connect(
            _uri(self.path), timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, uri=True, check_same_thread=False
        )
        try:
            # To the end, where it is written: a driver drops the failure of a statement that it leaves before that.
            anchor.execute("PRAGMA journal_mode=WAL").fetchall()
            anchor.execute("SELECT count(*) FROM sqlite_master").fetchall()  # which opens its WAL
            anchor.execute("PRAGMA busy_timeout=0")  # from now on it is used in the event loop
            self._files.note(anchor)
        except BaseException:
            anchor.close()
            raise
        return anchor


def sqlite_engine(path: Path) -> AsyncEngine:
    """Return what SQLAlchemy opens the file with, which has to be there."""
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=_uri(path), query={"uri": "true"}),
        hide_parameters=True,
        pool_timeout=_BUSY_TIMEOUT_SECONDS,
        connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
    )
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def sqlite_path(database: str) -> Path:
    """Return the path in a URL's database, which may be a URI itself."""
    return Path(unquote(urlsplit(database).path) if database.startswith("file:") else database)


def _uri(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=rw"  # never a new file in the place of one that was moved away


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _begin does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock before anything is read: a transaction that reads first and then writes would
    # fail, or write what it read too long ago.
    if mode := connection.get_execution_options().get("sqlite_begin", "DEFERRED"):
        connection.exec_driver_sql(f"BEGIN {mode}")

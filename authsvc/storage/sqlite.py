"""The key service's database in a SQLite file: how it is opened, and kept in view as long as it is.

A revocation that is committed to a file that the path no longer leads to is nowhere once the service is started again.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from sqlalchemy.ext.asyncio import AsyncEngine

from authsvc.errors import StoreLostError, StoreOverwrittenError, StoreRefusedError, StoreUnavailableError
from authsvc.runtime.sql import sqlite_engine, sqlite_uri
from authsvc.runtime.sqlite_files import FileOverwrittenError, FilesLostError, SqliteFiles

_BUSY_TIMEOUT_SECONDS = 5
_LATELY_SECONDS = 0.05
"""For so long a look at the files does for all reads, of which one costs little more than a look."""


class SqliteFile:
    """The one file that the process reads and writes. It never turns to another one; that is for the next start."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Open nothing yet."""
        self.path = path
        self._uri = sqlite_uri(path)
        self._files = SqliteFiles(path)
        self._monotonic = monotonic
        self._opening = Lock()
        self._anchor: sqlite3.Connection | None = None
        """Open from first to last, so that SQLite does not remove the WAL between two connections."""
        self.lost: StoreLostError | None = None
        """What the last look at the files found."""
        self._look_again_at = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether it is kept in view."""
        return self._anchor is not None

    def engine(self) -> AsyncEngine:
        """Return what SQLAlchemy opens the file with, which has to be there."""
        return sqlite_engine(
            self._uri,
            *("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"),
            begin="DEFERRED",
            busy_seconds=_BUSY_TIMEOUT_SECONDS,
            pool_timeout=_BUSY_TIMEOUT_SECONDS,
        )

    def open(self) -> None:
        """Open the file, and make it if there is none, for this user only: what SQLite puts beside it takes its mode.

        Waits for whoever has it locked. Raises StoreRefusedError beside the WAL of a file that is gone, OSError,
        sqlite3.Error.
        """
        with self._opening:
            if self._anchor is not None:
                return
            if lost := self._files.lone_wal():
                raise StoreRefusedError(lost)
            self.path.touch(mode=0o600)
            seconds = _BUSY_TIMEOUT_SECONDS
            anchor = sqlite3.connect(self._uri, seconds, isolation_level=None, uri=True, check_same_thread=False)
            try:
                # Fetched, since a driver drops the failure of a statement that it does not run to its end.
                anchor.execute("PRAGMA journal_mode=WAL").fetchall()
                anchor.execute("SELECT count(*) FROM sqlite_master").fetchall()  # which opens its WAL
                anchor.execute("PRAGMA busy_timeout=0")  # from now on it is used in the event loop
                self._files.note(anchor)
            except BaseException:
                anchor.close()
                raise
            self._anchor = anchor

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
        self.lost = lost
        self._look_again_at = self._monotonic() + _LATELY_SECONDS
        if lost is not None:
            raise lost

    def check_lately(self) -> None:
        """Do the same for reads, for which a look of a moment ago does."""
        if self._monotonic() >= self._look_again_at:
            self.check()
        elif self.lost is not None:
            raise type(self.lost)(self.lost.reason)

    def connect(self) -> sqlite3.Connection:
        """Open one more connection, which fails where it would have to wait; raise sqlite3.Error."""
        if self._anchor is None:
            raise sqlite3.OperationalError("the file is not open yet")
        return sqlite3.connect(self._uri, timeout=0, isolation_level=None, uri=True)

    def close(self) -> None:
        """Close the last connection. All others have to be closed by then."""
        if self._anchor is not None:
            self._files.settle()
            self._anchor.close()
            self._anchor = None
            self._files.close()

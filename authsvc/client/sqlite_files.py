"""Whether an open SQLite database is still the one that its path leads to.

That is its file, with what is in it, and beside it the WAL and its index. The key service's database and the bridge's
log store look at them before and after each commit: what is committed to a file that nobody will open again is lost,
though SQLite says nothing.
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

_Identity: TypeAlias = tuple[int, int]
"""The device and the number of a file: what stays when it is moved."""

_STAMP_OFFSET = 60
"""Of `PRAGMA user_version` in the file's first page, 4 bytes, big-endian (SQLite's file format, 1.3)."""
_STAMP_BYTES = 4
_STAMP_MAX = 2**31 - 1
_WAL_MAGIC = {b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"}
"""What a WAL begins with (SQLite's file format, 4.1)."""


class FilesLostError(Exception):
    """What would be written now would not be found: the text says which file, and what became of it."""


class FileOverwrittenError(FilesLostError):
    """The file is in its place, with other content in it: what its WAL has does not fit it."""


class SqliteFiles:
    """The files of a database that this process has open. It goes back to being whole when they are back.

    A file that was copied over the old one in place is told by a stamp, a number in its header that only ever grows:
    `stamp` raises it. Copies of the database from before have a lower one.
    """

    def __init__(self, path: Path) -> None:
        """Look at nothing yet."""
        self.path = path
        self.is_open = False
        self._wal_path = path
        self._main: _Identity | None = None
        """The file that was opened first, and is the only one that is ever written to."""
        self._sides: dict[Path, _Identity] = {}
        self._main_fd = self._wal_fd = -1
        self._stamp = 0

    def lone_wal(self) -> str | None:
        """Return what is wrong where the file is missing beside a WAL, which SQLite would delete; else None."""
        wal_path = self._side_path("-wal")
        with suppress(OSError):
            if wal_path.stat().st_size and not self.path.exists():
                return (
                    f"{self.path} is missing, and {wal_path} has what was stored in it last: "
                    "move the file back, or its WAL away"
                )
        return None

    def note(self) -> None:
        """Take note of what a connection has open, which has read at least.

        Again after the last connection was closed, which takes the WAL with it: the file itself has to be the same.
        """
        self._wal_path = self._side_path("-wal")
        if self.is_open:
            self._check_main()
            os.close(self._wal_fd)  # of this one, SQLite has no locks to lose by that
            self._wal_fd = -1
        else:
            self._main_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._main_fd)
            self._main = status.st_dev, status.st_ino
            self._stamp = self._read_stamp() or 0
            self.is_open = True
        paths = (self._wal_path, self._side_path("-shm"))
        self._sides = {path: found for path in paths if (found := _identity(path)) is not None}
        if self._wal_path in self._sides:
            self._wal_fd = os.open(self._wal_path, os.O_RDONLY | os.O_CLOEXEC)

    def check(self) -> None:
        """Raise FilesLostError when one of the files is not, or no longer, what was opened. Three to five looks."""
        self._check_main()
        for path, opened in self._sides.items():
            if _identity(path) != opened:
                raise FilesLostError(f"{path} is not the file that was opened: it was moved, removed or replaced")
        try:
            stamp = self._read_stamp()
            magic = os.pread(self._wal_fd, 4, 0) if self._wal_fd >= 0 else b""
        except OSError as error:
            raise FilesLostError(f"{self.path} cannot be read: {error.strerror}") from None
        if stamp is None or stamp < self._stamp:
            raise FileOverwrittenError(f"{self.path} was overwritten while it was open")
        if magic and magic not in _WAL_MAGIC:
            raise FileOverwrittenError(f"{self._wal_path} was overwritten while it was open")
        self._stamp = stamp

    def settle(self, connection: sqlite3.Connection) -> None:
        """Keep another file, which was put in the place of this one, from getting this one's WAL with the next start.

        Called before the last connection is closed. What the WAL has goes to its own file, wherever that is by now.
        """
        if self.is_open and _identity(self.path) not in (None, self._main):
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Look no more. Only after the last connection to the file: closing it here drops the locks of all others."""
        for descriptor in (self._main_fd, self._wal_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._main_fd = self._wal_fd = -1
        self.is_open = False

    def _check_main(self) -> None:
        if not self.is_open or _identity(self.path) != self._main:
            raise FilesLostError(f"{self.path} is not the file that was opened: it was moved, removed or replaced")

    def _side_path(self, suffix: str) -> Path:
        return Path(f"{self.path.resolve()}{suffix}")  # SQLite, too, has it beside what a link leads to

    def _read_stamp(self) -> int | None:
        """Return the number in the file's header, which lags behind what is in the WAL; None when it is cut off."""
        stored = os.pread(self._main_fd, _STAMP_BYTES, _STAMP_OFFSET)
        return int.from_bytes(stored, "big") if len(stored) == _STAMP_BYTES else None


def stamp(number: int) -> str:
    """Return the statement that stamps the file, as part of a transaction; it should be more than the last one."""
    return f"PRAGMA user_version = {min(number, _STAMP_MAX)}"


def _identity(path: Path) -> _Identity | None:
    """Return which file a path leads to, None when it leads to none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - half the cost of `Path.stat`
    except OSError:
        return None
    return status.st_dev, status.st_ino

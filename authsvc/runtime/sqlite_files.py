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

FileIdentity: TypeAlias = tuple[int, int]
"""The device and the number of a file: what stays when it is moved."""

_STAMP_OFFSET = 60
"""Of `PRAGMA user_version` in the file's first page, 4 bytes, big-endian (SQLite's file format, 1.3)."""
_STAMP_BYTES = 4
_STAMP_MAX = 2**31 - 1
_MAGIC_BYTES = 4
_WAL_MAGIC = {b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"}
"""What a WAL begins with (SQLite's file format, 4.1)."""


class FilesLostError(Exception):
    """What would be written now would not be found: the text says which file, and what became of it."""


class FileOverwrittenError(FilesLostError):
    """The file is in its place, with other content in it: what its WAL has does not fit it."""


class SqliteFiles:
    """The files of a database that this process has open. They are in order again once the same ones are back.

    What is copied over the file in place is told by a stamp in its header: `stamp` raises the number, in transactions
    before each checkpoint at least. In the file it may lag behind what SQLite reads there by way of the WAL, but it is
    never ahead of that, and goes back only where that does, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wal_path = path
        self.is_open = False
        self._connection: sqlite3.Connection
        self._main: FileIdentity | None = None
        """The file that was opened first, and is the only one that is ever written to."""
        self._sides: dict[Path, FileIdentity] = {}
        self._main_fd = self._wal_fd = -1
        self._changed: tuple[int, int] | None = None
        """When the file was written to last, and its size, as its content was looked at."""
        self._seen = self._stored = self._stored_min = 0
        """The stamp: by way of the WAL, in the file, and the lowest that a checkpoint may leave there."""

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

    def note(self, connection: sqlite3.Connection) -> None:
        """Note what a connection has open that has read already and will be the last one to be closed.

        Do so again with the connection after it, since the last one takes the WAL with it: the file must be the same.
        Raises FilesLostError, OSError.
        """
        self._connection = connection
        self.wal_path = self._side_path("-wal")
        if self.is_open:
            self.check_main()
            if self._wal_fd >= 0:
                os.close(self._wal_fd)  # of this one, SQLite has no locks to lose by that
                self._wal_fd = -1
        else:
            self._main_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._main_fd)
            self._main = status.st_dev, status.st_ino
            self._stored = self._stored_min = self._read_stamp() or 0
            self.is_open = True
        paths = (self.wal_path, self._side_path("-shm"))
        self._sides = {path: found for path in paths if (found := file_identity(path)) is not None}
        if self.wal_path in self._sides:
            self._wal_fd = os.open(self.wal_path, os.O_RDONLY | os.O_CLOEXEC)

    def check(self) -> None:
        """Raise FilesLostError when one of the files is not, or no longer, what was opened, or has other content.

        Raises OSError or sqlite3.OperationalError where nobody can tell now: the disk fails, or has no room.
        """
        self._changed = None
        self.check_paths()

    def check_paths(self) -> None:
        """Do the same, but look at the file's content only where it was written to: that costs a third."""
        status = self.check_main()
        for path, opened in self._sides.items():
            if file_identity(path) != opened:
                raise _moved(path)
        changed = status.st_ctime_ns, status.st_size
        try:
            if changed != self._changed:
                self._check_content()
                self._changed = changed
            magic = os.pread(self._wal_fd, _MAGIC_BYTES, 0) if self._wal_fd >= 0 else b""
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise FileOverwrittenError(f"{self.path} was overwritten while it was open: {error}") from None
        if len(magic) == _MAGIC_BYTES and magic not in _WAL_MAGIC:  # shorter, SQLite had no room to begin it
            raise FileOverwrittenError(f"{self.wal_path} was overwritten while it was open")

    def check_main(self) -> os.stat_result:
        """Raise FilesLostError when the path leads to another file, or to none: before a connection is made."""
        with suppress(OSError):
            status = os.stat(self.path)  # noqa: PTH116 - half the cost of `Path.stat`
            if self.is_open and (status.st_dev, status.st_ino) == self._main:
                return status
        raise _moved(self.path)

    def _check_content(self) -> None:
        stored = self._read_stamp()
        if stored is None:
            raise FileOverwrittenError(f"{self.path} was overwritten while it was open")
        ((seen,),) = self._connection.execute("PRAGMA user_version").fetchall()
        if seen < self._seen:  # as SQLite has it: it was restored by SQLite, and the file follows
            self._stored_min = seen
        self._seen = seen
        if stored != self._stored:
            if not self._stored_min <= stored <= seen:
                raise FileOverwrittenError(f"{self.path} was overwritten while it was open")
            self._stored = self._stored_min = stored

    def settle(self) -> None:
        """Keep another file that was put in the place of this one from getting this one's WAL at the next start.

        Called before the connection is closed. The WAL goes into its own file, wherever that is by now.
        """
        if self.is_open and file_identity(self.path) not in (None, self._main):
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Look no more. Only after the last connection to the file: closing it here drops the locks of all others."""
        for descriptor in (self._main_fd, self._wal_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._main_fd = self._wal_fd = -1
        self.is_open = False

    def _side_path(self, suffix: str) -> Path:
        return Path(f"{self.path.resolve()}{suffix}")  # SQLite, too, has it beside what a link leads to

    def _read_stamp(self) -> int | None:
        """Return the number in the file's header, which lags behind what is in the WAL; None when it is cut off."""
        stored = os.pread(self._main_fd, _STAMP_BYTES, _STAMP_OFFSET)
        return int.from_bytes(stored, "big") if len(stored) == _STAMP_BYTES else None


def stamp(number: int) -> str:
    """Return the statement that stamps the file, as part of a transaction; it should be more than the last one."""
    return f"PRAGMA user_version = {min(number, _STAMP_MAX)}"


def _moved(path: Path) -> FilesLostError:
    return FilesLostError(f"{path} is not the file that was opened: it was moved, removed or replaced")


def file_identity(path: Path) -> FileIdentity | None:
    """Return which file a path leads to, None when it leads to none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - half the cost of `Path.stat`
    except OSError:
        return None
    return status.st_dev, status.st_ino

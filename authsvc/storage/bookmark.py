"""How far this service had come in its database, in a file: else a start could not tell it from a restored backup."""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from authsvc.runtime.environment import ConfigurationError

FILE = "database-seen"


class Seen(msgspec.Struct, frozen=True):
    """A change that was committed, and how it is told from another one of the same number; and the file of SQLite."""

    epoch: str
    revision: int
    mark: str
    file: str | None = None
    file_number: int = 0
    wal_number: int = 0
    is_spoilt: bool = False
    """It was overwritten while it was open: what SQLite made of it mixes two histories."""


class Bookmark:
    """The file, replaced at each change. Without it, or where it cannot be written, a start notices less."""

    def __init__(self, state_dir: Path, file: Path | None) -> None:
        """`file` is SQLite's."""
        self.path = state_dir / FILE
        self._file = file
        self.seen: Seen | None = None
        """What was seen last."""
        with suppress(OSError, msgspec.DecodeError):
            self.seen = msgspec.json.decode(self.path.read_bytes(), type=Seen)

    def check_file(self) -> None:
        """Raise ConfigurationError when the file of SQLite is not fit to be opened, or to be made anew."""
        seen, file = self.seen, self._file
        if seen is None or file is None or seen.file != str(file.resolve()):
            return
        anew = f"remove {self.path} if the keys are to begin anew"
        number, wal_number = _number(file), _wal(file)
        if not number:
            raise ConfigurationError(
                f"{file} is missing, which had {seen.revision} changes: put it, or a backup of it, back; {anew}"
            )
        if number == seen.file_number and seen.is_spoilt:
            raise ConfigurationError(
                f"{file} was overwritten while authsvc had it open, beside the WAL of what it was: remove {file}-wal "
                f"and {file}-shm, put the backup in place once more, and remove {self.path}"
            )
        if number != seen.file_number and wal_number and wal_number == seen.wal_number:
            raise ConfigurationError(
                f"{file} is another file than the one that {file}-wal is of, which would spoil it: "
                f"move {file}-wal and {file}-shm away, or remove {self.path} if they belong together"
            )

    def note(self, epoch: str, revision: int, mark: str) -> None:
        """Write down what was seen; nothing while there was no change at all, and so nothing to lose."""
        if revision:
            file = self._file
            numbers = () if file is None else (str(file.resolve()), _number(file), _wal(file))
            self._write(Seen(epoch, revision, mark, *numbers))

    def spoil(self) -> None:
        """Write down that the file was overwritten: as it ends, SQLite copies into it what the WAL has."""
        if self.seen is not None:
            self._write(msgspec.structs.replace(self.seen, is_spoilt=True))

    def _write(self, seen: Seen) -> None:
        if seen == self.seen:
            return
        self.seen = seen
        draft = self.path.with_name(f"{FILE}.{os.getpid()}")
        with suppress(OSError):
            draft.touch(mode=0o600)
            draft.write_bytes(msgspec.json.encode(seen) + b"\n")
            draft.replace(self.path)


def _number(path: Path) -> int:
    """Return the number of the file that a path leads to, 0 for none and for one that is empty."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino if status.st_size else 0
    return 0


def _wal(file: Path) -> int:
    return _number(Path(f"{file.resolve()}-wal"))

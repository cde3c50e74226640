"""What is worth nothing any more before its time: signed-out sessions and used links, kept in the state directory.

One empty file each, `DIRECTORY/UNTIL-ID`, made in one step, so that a restart changes nothing and dashboards which
share the directory know each other's at once. Used by `sessions`; files of what would be over anyway are removed.
"""

import os
from collections import deque
from pathlib import Path

import structlog

from authsvc.runtime.environment import ConfigurationError

KEPT_MAX = 10_000
"""Of a kind; of more, those that end first are forgotten first."""

_log = structlog.get_logger("httpbridge.dashboard")


class Spent:
    """Those of one kind, by id and end (Unix seconds)."""

    def __init__(self, directory: Path) -> None:
        """Make the directory when there is something to keep."""
        self._directory = directory
        self._unstored: deque[str] = deque(maxlen=KEPT_MAX)
        """What the directory did not take; known to this process alone."""

    def add(self, id_: str, until: int, now: int) -> bool:
        """Keep one in mind, durably; return whether it was not known. Of several who ask at once, one is told so.

        Raises OSError when the directory does not take it.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._directory / _name(id_, until)).touch(mode=0o600, exist_ok=False)
            self._forget(now)
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileExistsError:
            if not self._directory.is_dir():
                raise
            return False
        return True

    def add_anyway(self, id_: str, until: int, now: int) -> None:
        """Keep one in mind; where the directory does not take it, until this process ends, and the log says so."""
        try:
            self.add(id_, until, now)
        except OSError as error:
            self._unstored.append(_name(id_, until))
            _log.error("sign_out_not_stored", directory=str(self._directory), reason=error.strerror)

    def has(self, id_: str, until: int) -> bool:
        """Whether it is one of them. Raises ConfigurationError when the directory cannot be looked into."""
        name = _name(id_, until)
        try:
            return name in self._unstored or (self._directory / name).exists()
        except OSError as error:
            raise ConfigurationError(f"HTTPBRIDGE_STATE_DIR: {self._directory}: {error.strerror}") from None

    def _forget(self, now: int) -> None:
        names = sorted(path.name for path in self._directory.iterdir())
        too_many = len(names) - KEPT_MAX
        for number, name in enumerate(names):
            if number < too_many or name < _name("", now):
                (self._directory / name).unlink(missing_ok=True)


def _name(id_: str, until: int) -> str:
    return f"{until:012}-{id_}"

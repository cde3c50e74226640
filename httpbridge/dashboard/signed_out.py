"""Which sessions were signed out, kept in the state folder: a copied cookie stays dead when the dashboard starts again.

One empty file a session, `signed-out/UNTIL-ID`, made in one step, so that dashboards which share the folder know each
other's at once. Used by `sessions`; files of sessions that would be over anyway are removed.
"""

import os
from collections import deque
from pathlib import Path

import structlog

from authsvc.client.environment import ConfigurationError

FOLDER = "signed-out"

KEPT_MAX = 10_000
"""Sessions; of more, those that end first are forgotten first."""

_log = structlog.get_logger("httpbridge.dashboard")


class SignedOut:
    """The sessions that were signed out, by id and end (Unix seconds)."""

    def __init__(self, state_dir: Path) -> None:
        """Make the folder below `state_dir` when there is something to keep."""
        self._folder = state_dir / FOLDER
        self._unstored: deque[str] = deque(maxlen=KEPT_MAX)
        """What the folder did not take; known to this process alone."""

    def add(self, session_id: str, until: int, now: int) -> None:
        """Keep a session in mind, durably; where that fails, until this process ends, and the log says so."""
        name = _name(session_id, until)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).touch(mode=0o600)
            self._forget(now)
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._unstored.append(name)
            _log.error("sign_out_not_stored", folder=str(self._folder), reason=error.strerror)

    def has(self, session_id: str, until: int) -> bool:
        """Whether the session was signed out. Raises ConfigurationError when the folder cannot be looked into."""
        name = _name(session_id, until)
        try:
            return name in self._unstored or (self._folder / name).exists()
        except OSError as error:
            raise ConfigurationError(f"HTTPBRIDGE_STATE_DIR: {self._folder}: {error.strerror}") from None

    def _forget(self, now: int) -> None:
        names = sorted(path.name for path in self._folder.iterdir())
        too_many = len(names) - KEPT_MAX
        for number, name in enumerate(names):
            if number < too_many or name < _name("", now):
                (self._folder / name).unlink(missing_ok=True)


def _name(session_id: str, until: int) -> str:
    return f"{until:012}-{session_id}"

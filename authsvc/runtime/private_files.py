"""What nobody else may change or read: the state directory, the secrets in it, and the files of TLS.

Others are everyone but root, this user and the groups of this process: Kubernetes lets its pod's group write to a
volume (`fsGroup`), and with umask 002 a user's own group may write to the user's files. The bits of the mode count, as
root may do everything.
"""

import errno
import os
import secrets
import shlex
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from authsvc.runtime.environment import ConfigurationError, Token

_READ, _WRITE, _ALL = 4, 2, 7


def make_directory(path: Path, variable: str) -> None:
    """Make the directory that a variable names, for this user only, if there is none.

    Raises ConfigurationError when that fails, or others can write to the directory or own it: whoever can puts a token
    or a database there. The directories above it are not looked at.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            chown = _command("chown", os.geteuid(), path)
            raise ConfigurationError(
                f"{variable}: {path}: it belongs to another user ({status.st_uid}): run as that one, or run {chown}"
            )
        if reason := _open_to_others(path, status, _WRITE):
            raise ConfigurationError(f"{variable}: {path}: {reason}, or name a directory inside it, which is then made")
    except OSError as error:
        raise ConfigurationError(f"{variable}: {path}: {error.strerror}") from None


def load_or_create_token(path: Path) -> Token:
    """Return the token in a file, generated (mode 0600) if there is no such file.

    Raises ConfigurationError when the file can be neither read nor made, or holds something else, or others can read
    or write it.
    """
    try:
        if not path.exists():
            _make_token(path)
        return Token.parse(read_private(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}; remove it to have one generated") from None


def read_private(path: Path) -> str:
    """Return what a file holds; raise OSError, PermissionError where others can read or write it."""
    with path.open(encoding="utf-8", errors="replace") as file:
        if reason := _open_to_others(path, os.fstat(file.fileno()), _READ | _WRITE):
            raise PermissionError(errno.EACCES, reason)
        return file.read()


def check_private(path: Path) -> None:
    """Raise ConfigurationError for a file, if there is one, that others can read or write."""
    with suppress(FileNotFoundError):
        if reason := _open_to_others(path, path.stat(), _READ | _WRITE):
            raise ConfigurationError(f"{path}: {reason}")


def check_files(files: Iterable[tuple[str, Path]]) -> None:
    """Raise ConfigurationError for a file, which its variable names, that everybody can write.

    Whose it is and what its group may are for the operator to choose. What cannot be looked at is another's to report.
    """
    for variable, path in files:
        if _mode(path) & _WRITE:
            raise ConfigurationError(
                f"{variable}: {path}: everybody can write to it: run {_command('chmod', 'o-w', path)}"
            )


def readable_by_all(files: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return those that everybody can read: Docker Compose and Kubernetes mount secrets so unless told otherwise."""
    return [(variable, path) for variable, path in files if _mode(path) & _READ]


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _open_to_others(path: Path, status: os.stat_result, what: int) -> str | None:
    """Return why others can do one of these to a file or a directory, and how to end that; None if they cannot."""
    bits = status.st_mode & _ALL
    if status.st_gid not in (0, os.getegid(), *os.getgroups()):
        bits |= status.st_mode >> 3 & _ALL
    if not bits & what:
        return None
    verb = "write to" if bits & what & _WRITE else "read"
    return f"others can {verb} it (mode {status.st_mode & 0o777:04o}): run {_command('chmod', 'go-rwx', path)}"


def _command(*words: object) -> str:
    return f"'{shlex.join(map(str, words))}'"


def _make_token(path: Path) -> None:
    """Write a new token, unless somebody else does so first.

    It is linked into place when it is whole, so that a process which starts at the same time never reads half of it,
    and of two that start at once both take the first one's.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w") as draft:
            draft.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):
            path.hardlink_to(name)
    finally:
        Path(name).unlink()

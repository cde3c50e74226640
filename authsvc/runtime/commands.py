"""How a command begins, prints and ends: with one line on standard error, and an exit status. For both command lines.

docs/operations.md has the statuses, and the ways in which a start can fail.
"""

import asyncio
import gc
import getpass
import os
import resource
import sys
import threading
import traceback
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn, TypeVar

import click
import structlog
import uvloop

from authsvc.runtime.control_channel import WorkerSpec
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.logging import configure, traceback_without_text
from authsvc.runtime.process import discard, ignore_other_signals, open_missing_streams, turn_off_core_dumps
from authsvc.runtime.service_config import ServiceConfig
from authsvc.runtime.workers import StartFailedError

REFUSED = 1
"""By a service, or by the user."""
USAGE = 2
"""Wrong usage, or a configuration that cannot work."""
UNAVAILABLE = 3
"""What is needed is unavailable now; the same command may work later."""
DEFECT = 4
"""What nobody foresaw."""

_FILES_MIN = 32
"""Connections for which there must be room."""

_T = TypeVar("_T")
_Config = TypeVar("_Config", bound=ServiceConfig)

_log = structlog.get_logger("authsvc")


class OutputError(Exception):
    """Standard output cannot be written; the message is one line for the user."""


class Commands(click.Group):
    """Commands; whatever one of them raises is a line and an exit status, and so is output that cannot be written.

    Before any reads a secret or opens a file, core dumps are off, and the three standard streams are open.
    """

    def invoke(self, ctx: click.Context) -> Any:
        turn_off_core_dumps()
        open_missing_streams()
        # Standard output takes any text that a caller chose, whatever its encoding, as Python's standard error does.
        if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends the process as it should
        except OutputError as error:
            discard(sys.stdout)
            fail(str(error), REFUSED)
        except ConfigurationError as error:
            fail(str(error), USAGE)
        except StartFailedError as error:  # whose worker has said why
            sys.exit(error.status if error.status > 0 else DEFECT)
        except Exception as error:  # noqa: BLE001 - the last resort
            if structlog.is_configured():  # the texts of errors may be secret
                _log.debug("unexpected_error", traceback=traceback_without_text(error))
            fail(f"unexpected error, a defect: {_kind(error)}; with …_LOG_LEVEL=debug it logs more", DEFECT)


class _Text(click.ParamType[str]):
    """An argument that can be sent and stored: the bytes of the terminal need not be UTF-8, those of a message must."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value; refuse one that is not UTF-8, which Python hands over as half surrogate pairs."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value.encode('utf-8', 'replace').decode()!r} is not UTF-8", param, ctx)
        return value


TEXT = _Text()


def service_config(kind: type[_Config], spec: WorkerSpec | None = None) -> _Config:
    """Return the configuration of a process that serves, a worker say, after what all of those do first.

    Raises ConfigurationError.
    """
    ignore_other_signals()
    # gRPC's core would print what is wrong with a connection, at length; it is logged in one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    config = kind.from_environment(os.environ)
    configure(config.log_level, config.log_format, spec.name if spec else None)
    if spec is None:
        for variable, path in config.keys_readable_by_all():
            _log.warning("key_readable_by_all", variable=variable, file=str(path))
    return config


def user_name() -> str:
    """Return who runs the command, for audit trails."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end on a new event loop."""
    gc.freeze()  # what was imported is for good: a collection of it would stop the event loop for 40 ms now and then
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        _let_threads_end(runner.get_loop())
        return runner.run(work)


def _let_threads_end(loop: asyncio.AbstractEventLoop) -> None:
    """Have a thread say nothing that ends after the loop, and cannot tell it: a driver's, whose connection failed."""

    def failed(arguments: threading.ExceptHookArgs) -> None:
        if not loop.is_closed():
            threading.__excepthook__(arguments)

    threading.excepthook = failed


def fail(reason: str, status: int) -> NoReturn:
    """End the process with one line on standard error, whatever a name or a value in it contains."""
    note(f"{click.get_current_context().find_root().info_name}: {plain(reason)}")
    sys.exit(status)


def plain(text: str) -> str:
    """Return a text that a caller chose, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def note(text: str) -> None:
    """Tell the user beside the output; where that cannot be written, the output still counts."""
    try:
        click.echo(text, err=True)
    except OSError:
        discard(sys.stderr)


def show(text: str, *, ends_line: bool = True) -> None:
    """Print on standard output; raise OutputError where that takes nothing."""
    with writing():
        click.echo(text, nl=ends_line)


@contextmanager
def writing(lost: str = "") -> Iterator[None]:
    """Raise OutputError for a standard output that takes nothing, with what is lost then.

    Not where its reader has gone: click ends the process without a word, as others do.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}{lost}") from None


def announce(service: str, has_tls: bool, address: Address) -> None:
    """Print the line that says that a service listens. It serves also where nobody can read that."""
    try:
        click.echo(f"{service} listening address={address} tls={'on' if has_tls else 'off'}")
    except OSError:
        discard(sys.stdout)


def connections_that_fit(connections_max: int, other_files_max: int) -> int:
    """Return how many connections fit into the open files that the system allows, after asking it for enough.

    Raises ConfigurationError when these are hardly any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = connections_max + other_files_max
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if files < other_files_max + min(connections_max, _FILES_MIN):
        raise ConfigurationError(
            f"the system allows {files} open files, and {other_files_max + _FILES_MIN} are needed at least: "
            "raise the limit (ulimit -n, LimitNOFILE)"
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files - other_files_max


def _kind(error: BaseException) -> str:
    """Return an error's type, and where in our code it was raised."""
    place = ""
    while True:
        for frame, line in traceback.walk_tb(error.__traceback__):
            module = str(frame.f_globals.get("__name__"))
            if module.startswith(("authsvc.", "httpbridge.")):
                place = f" at {module}:{line}"
        if not isinstance(error, BaseExceptionGroup):
            return f"{type(error).__qualname__}{place}"
        error = error.exceptions[0]

"""How commands that use the log store run and end, and the options that several of them have."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from authsvc.runtime.commands import REFUSED, TEXT, UNAVAILABLE, USAGE, fail, run
from httpbridge.config import Config
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import ChunkDamagedError
from httpbridge.log_store.selection import LogFilter
from httpbridge.logs import Level
from httpbridge.text import parse_since

T = TypeVar("T")
_Function = TypeVar("_Function", bound=Callable[..., Any])

project_argument = click.argument("project", type=TEXT)


def run_with_store(config: Config, work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what goes wrong is one line and an exit status."""
    try:
        return run(work)
    except ChunkDamagedError as error:
        fail(f"{error}; `httpbridge store check` names all that is damaged", REFUSED)
    except StoreSetupError as error:
        fail(f"{config.store_variable}: {error}", USAGE)
    except StoreUnavailableError as error:
        fail(f"the log store is unavailable: {error}", UNAVAILABLE)


def instant(_context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Read an option as a time, or as how long ago it is."""
    if value is None:
        return None
    try:
        return parse_since(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=parameter.opts[0]) from None


since_option = click.option(
    "--since",
    metavar="TIME",
    callback=instant,
    help="From this time on, or this long ago: 2026-01-31T08:00:00Z, 15m, 2h.",
)

_FILTER_OPTIONS = (
    since_option,
    click.option("--until", metavar="TIME", callback=instant, help="Before this time, or this long ago."),
    click.option(
        "--level",
        "levels",
        type=click.Choice([level.value for level in Level]),
        multiple=True,
        help="Only entries of this level; repeatable.",
    ),
    click.option("--service", type=TEXT, metavar="NAME", help="Only entries of this service."),
    click.option("--environment", type=TEXT, metavar="NAME", help="Only entries of this environment."),
    click.option(
        "--text",
        type=TEXT,
        default="",
        metavar="TEXT",
        help="Only entries with this in their message, metadata, trace or request id, in any case.",
    ),
)


def filter_options(command: _Function) -> _Function:
    """Give a command the options that `log_filter` takes."""
    for option in reversed(_FILTER_OPTIONS):
        command = option(command)
    return command


def log_filter(project: str, *, levels: tuple[str, ...], **options: Any) -> LogFilter:
    """Return what the options of `filter_options` say."""
    return LogFilter(project_id=project, levels=frozenset(map(Level, levels)), **options)

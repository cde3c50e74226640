"""How a process of this product logs: events with fields, one a line, on standard error.

`configure` is called once, at start, by each command line. Libraries' own logs come out
the same way, from WARNING on: below that they print what they handle.
"""

import logging
import sys
import traceback
from enum import StrEnum

import structlog


class LogLevel(StrEnum):
    """The least severe event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How an event is written."""

    CONSOLE = "console"
    JSON = "json"


def configure(level: LogLevel, log_format: LogFormat, worker: str | None = None) -> None:
    """Log to standard error from `level` on; each event says which worker it is of, where there are several."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(lambda _logger, _method, event: {**event, "worker": worker})
    render: list[structlog.typing.Processor]
    if log_format is LogFormat.JSON:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain: the prettier formatters print local variables, and with them what callers sent.
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level.value),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def traceback_without_text(error: BaseException) -> str:
    """Return an error's traceback, and those of what it came from, with types instead of messages.

    A message may repeat what a caller sent.
    """
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        parts += [
            f"{type(current).__module__}.{type(current).__qualname__}\n",
            *traceback.format_tb(current.__traceback__),
        ]
        current = current.__cause__ or current.__context__
    return "".join(parts)

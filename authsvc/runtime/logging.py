"""How a process of this product logs: events with fields, one a line, on standard error.

`configure` is called once, at start, by each command line. Libraries' own logs come out
the same way, from WARNING on: below that they print what they handle. `authsvc.client`
logs like a library, and comes out from `level` on.
"""

import logging
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any

import structlog

from authsvc.runtime import library_logging
from authsvc.runtime.library_logging import traceback_without_text

__all__ = ["LogFormat", "LogLevel", "configure", "traceback_without_text"]


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
    """Log to standard error from `level` on; where there are several workers, each event names its own."""
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
            foreign_pre_chain=[_with_fields, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(library_logging.LOGGER).setLevel(level.value.upper())


def _with_fields(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take over the fields of a record that the client made."""
    record = event["_record"]
    if not hasattr(record, library_logging.FIELDS):
        return event
    return {**event, "event": getattr(record, library_logging.EVENT), **getattr(record, library_logging.FIELDS)}

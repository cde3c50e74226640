"""What the client logs, with the fields of each event, as `structlog.testing.capture_logs` has it for the services."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from authsvc.runtime import library_logging


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, library_logging.FIELDS)
        self.events.append(
            {"event": getattr(record, library_logging.EVENT), "log_level": record.levelname.lower(), **fields}
        )


@contextmanager
def client_events() -> Iterator[list[dict[str, Any]]]:
    """Collect the events of every level."""
    logger, collector = logging.getLogger(library_logging.LOGGER), _Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    try:
        yield collector.events
    finally:
        logger.setLevel(level)
        logger.removeHandler(collector)

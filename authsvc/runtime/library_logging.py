"""How the client logs in its host's process: standard `logging`, the logger `authsvc.client`, silent by default.

A host that configures logging sees a line such as `key_service_lost reason=…`; the services, whose logs have fields,
take event and fields from the record (`event_log`).
"""

import logging
import traceback
from typing import Any

LOGGER = "authsvc.client"

EVENT = "event"
"""The attribute of a record that has the event's name."""
FIELDS = "event_fields"
"""The attribute of a record that has the event's fields, a dictionary."""

logging.getLogger(LOGGER).addHandler(logging.NullHandler())


class EventLogger:
    """Logs events with fields; values are for the operator, and never secrets."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(LOGGER)

    def debug(self, event: str, **fields: Any) -> None:
        """Log what helps to find a fault."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log a change of state."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log what an operator may have to look after."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a fault of ours."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            text = "".join(f" {name}={value}" for name, value in fields.items())
            self._logger.log(level, "%s%s", event, text, extra={EVENT: event, FIELDS: fields}, stacklevel=3)


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

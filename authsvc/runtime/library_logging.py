"""How the client logs in its host's process: standard `logging`, the logger `authsvc.client`, silent by default.

A host that configures logging sees a line such as `key_service_lost reason=…`; the services, whose logs have fields,
take event and fields from the record (`logging`).
"""

import logging
import traceback
from functools import partialmethod
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

    def _log(self, level: int, event: str, **fields: Any) -> None:
        if self._logger.isEnabledFor(level):
            text = "".join(f" {name}={value}" for name, value in fields.items())
            self._logger.log(level, "%s%s", event, text, extra={EVENT: event, FIELDS: fields}, stacklevel=2)

    debug = partialmethod(_log, logging.DEBUG)
    info = partialmethod(_log, logging.INFO)
    warning = partialmethod(_log, logging.WARNING)
    error = partialmethod(_log, logging.ERROR)


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

"""Batches of logs, as `log_parser` reads them and the sinks store them. Pure.

Field names and limits are the public contract's.
"""

from datetime import datetime
from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How severe an entry is."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry as it came; the sinks fill in what the batch says for all of them."""

    level: Level
    message: str
    timestamp: datetime | None = None
    """Aware and in UTC; None stands for the time of receipt."""
    metadata: str | None = None
    """The text of a JSON object, numbers unchanged."""
    trace_id: str | None = None
    span_id: str | None = None
    request_id: str | None = None
    vercel_id: str | None = None
    context: str | None = None
    release: str | None = None


class LogBatch(msgspec.Struct, frozen=True, gc=False):
    """What one request carries, and whom it belongs to."""

    project_id: str
    key_id: str
    received_at: datetime
    """Aware, UTC."""
    service: str
    environment: str
    release: str | None
    """For entries that name none."""
    entries: list[LogEntry]


LOGS_MAX = 1000
"""Entries a batch may have (docs/http-api.md)."""

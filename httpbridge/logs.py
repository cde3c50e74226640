"""The body of POST /ingest/logs: bytes to a typed batch, with its limits. Pure.

Called by `ingest` with a decoded body; its types are what the sinks store. Field
names, defaults and limits are the public contract's.
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

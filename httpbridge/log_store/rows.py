"""A batch as rows of the table `logs`. Pure; used by the SQL sink."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from httpbridge.logs import LogBatch

Row = tuple[Any, ...]
"""Values in the order of `schema.WRITTEN_COLUMNS`."""

_ROW_WEIGHT = 256
"""What a row takes besides its long texts, roughly, in bytes."""


class Rows(msgspec.Struct, frozen=True, gc=False):
    """The rows of one batch, which are stored all or none, and about how many bytes they take."""

    project_id: str
    rows: list[Row]
    weight: int


def rows_of(batch: LogBatch, encode_instant: Callable[[datetime], Any]) -> Rows:
    """Fill in what the batch says for all of its entries; `encode_instant` makes what the driver takes."""
    project_id, key_id, service, environment = batch.project_id, batch.key_id, batch.service, batch.environment
    received_at = encode_instant(batch.received_at)
    rows = []
    weight = 0
    for entry in batch.entries:
        timestamp = received_at if entry.timestamp is None else encode_instant(entry.timestamp)
        release = batch.release if entry.release is None else entry.release
        weight += _ROW_WEIGHT + len(entry.message)
        # Rarely present, and of any length: one test each is cheaper than a sum over the row.
        if entry.metadata:
            weight += len(entry.metadata)
        if entry.trace_id:
            weight += len(entry.trace_id)
        if entry.span_id:
            weight += len(entry.span_id)
        if entry.request_id:
            weight += len(entry.request_id)
        if entry.vercel_id:
            weight += len(entry.vercel_id)
        if entry.context:
            weight += len(entry.context)
        rows.append(
            (
                project_id, key_id, received_at, service, environment, release, str(entry.level), entry.message,
                timestamp, entry.metadata, entry.trace_id, entry.span_id, entry.request_id, entry.vercel_id,
                entry.context,
            )
        )  # fmt: skip
    return Rows(project_id, rows, weight)

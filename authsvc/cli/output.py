"""What the commands print: an API key, JSON, tables, and by when a change holds."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.runtime.commands import note, plain, show, writing
from authsvc.v1 import key_service_pb2 as pb

_NAMED_MAX = 5  # holders in one line


def by_when(what: str, propagation: pb.Propagation, seconds: float) -> str:
    """Say in one line by when a change holds everywhere, and whom that depends on."""
    if propagation.effective:
        count = propagation.confirmed_count
        if not count:
            return f"{what} everywhere: no bridge holds a lease"
        bridges = "bridge" if count == 1 else "bridges"
        return f"{what} everywhere, {count} {bridges} confirmed in {seconds * 1000:.0f} ms"
    at_latest = propagation.effective_by
    # Rounded up: what is promised for an instant is not yet true in the second that it is part of.
    whole_second = datetime.fromtimestamp(at_latest.seconds + bool(at_latest.nanos), UTC)
    by = f"{what} at {whole_second:%H:%M:%S}Z at the latest"
    if not propagation.pending:
        return f"{by}: the database could not say who holds leases, or has lost changes and needs 'authsvc renew-epoch'"
    named = propagation.pending[:_NAMED_MAX]
    late = [
        f"{plain(holder.name or holder.holder_id)} has not answered since {holder.renew_time.ToDatetime(UTC):%H:%M:%S}Z"
        for holder in named
    ]
    if more := propagation.pending_count - len(named):
        late.append(f"nor have {more} more")
    return f"{by}: {', '.join(late)}"


def show_key(project: str, response: pb.IssueResponse | pb.RevokeResponse, *, as_json: bool) -> None:
    """Print the API key alone on standard output, for `KEY=$(authsvc issue demo)`."""
    replace = f"'authsvc revoke {project}' replaces it"
    with writing(f": the API key of {response.key.key_id}, which is in force, is lost; {replace}"):
        click.echo(json_text(response) if as_json else response.api_key)


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return a message, a list of messages, or what is JSON already, as JSON."""
    return json.dumps([_json(item) for item in value] if isinstance(value, list) else _json(value), indent=indent)


def _json(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    # Empty and false fields too, so that what reads it finds every name.
    return MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def show_table(
    found: Any, header: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str, *, as_json: bool
) -> None:
    """Print what was found, as JSON or as rows under a header; when there are none, say so on standard error."""
    if as_json:
        show(json_text(found))
        return
    if not rows:
        note(empty)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shown_list(entries: Sequence[str]) -> str:
    """Return an origin list for a line of text."""
    return ", ".join(entries) or "any"


def shown_time(value: Timestamp) -> str:
    """Return an instant for people, in UTC."""
    return f"{value.ToDatetime(UTC):%Y-%m-%d %H:%M:%SZ}"

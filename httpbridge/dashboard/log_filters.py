"""The address of a Logs page and what it selects: the filter, each part of it in the query string. Used by `logs`.

What does not make sense there is said beside its field, and the page shows what it can.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from multidict import MultiMapping

from httpbridge.log_view import parse_since, rfc3339
from httpbridge.logs import Level
from httpbridge.sinks.log_rows import LogFilter, Position

RANGES = {
    "15m": "Last 15 minutes",
    "1h": "Last hour",
    "6h": "Last 6 hours",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "all": "All time",
}
DEFAULT_RANGE = "1h"

TEXT_CHARACTERS_MAX = 200
NAME_CHARACTERS_MAX = 256
"""As long as a service or an environment may be (docs/http-api.md)."""

_ID_DIGITS_MAX = 18


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of the form, as they were sent."""

    range: str = DEFAULT_RANGE
    """A key of RANGES, back from `until` or now; does not count where there is a `since`."""
    since: str = ""
    """An instant, or how long ago: see `log_view.parse_since`."""
    until: str = ""
    level: tuple[Level, ...] = ()
    service: str = ""
    environment: str = ""
    text: str = ""

    @classmethod
    def of(cls, query: MultiMapping[str]) -> "LogQuery":
        """Read a query string; what is unknown is left out."""
        names = query.getall("level", [])
        chosen = _text(query, "range", NAME_CHARACTERS_MAX)
        return cls(
            range=chosen if chosen in RANGES else DEFAULT_RANGE,
            since=_text(query, "since", NAME_CHARACTERS_MAX).strip(),
            until=_text(query, "until", NAME_CHARACTERS_MAX).strip(),
            level=tuple(level for level in Level if level.value in names),
            service=_text(query, "service", NAME_CHARACTERS_MAX),
            environment=_text(query, "environment", NAME_CHARACTERS_MAX),
            text=_text(query, "text", TEXT_CHARACTERS_MAX),
        )

    def url(self, **more: Any) -> str:
        """Return the query string of this page, `?` and all; `more` replaces fields, or adds such as `before`."""
        fields = msgspec.structs.asdict(self) | more
        if fields["range"] == DEFAULT_RANGE or fields["since"]:
            del fields["range"]
        given = {name: value for name, value in fields.items() if value}
        return "?" + urlencode(given, doseq=True) if given else "?"

    @property
    def is_narrow(self) -> bool:
        """Whether anything but the time is chosen."""
        return bool(self.level or self.service or self.environment or self.text)

    def selection(self, project_id: str, now: datetime) -> tuple[LogFilter, dict[str, str]]:
        """Return what the page selects, and errors by field; where there are any, that field counts as empty."""
        errors: dict[str, str] = {}
        since = _instant(self.since, now, "since", errors)
        until = _instant(self.until, now, "until", errors)
        if since is None and self.range != "all":
            with suppress(ValueError):  # before the first year there is nothing
                since = parse_since(self.range, until or now)
        if since is not None and until is not None and until <= since:
            errors["until"] = "This is not after the beginning."
            until = None
        selection = LogFilter(
            project_id=project_id,
            since=since,
            until=until,
            levels=frozenset(self.level),
            service=self.service or None,
            environment=self.environment or None,
            text=self.text,
        )
        return selection, errors


def position_text(position: Position) -> str:
    """Write a place in the list for the query string."""
    return f"{rfc3339(position.timestamp)}_{position.id}"


def read_position(text: str) -> Position | None:
    """Read it back; None for anything else."""
    instant, _, id_ = text.rpartition("_")
    if not (id_.isascii() and id_.isdigit() and len(id_) <= _ID_DIGITS_MAX):
        return None
    try:
        timestamp = datetime.fromisoformat(instant)
        return Position(timestamp.astimezone(UTC), int(id_)) if timestamp.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _text(query: MultiMapping[str], name: str, characters_max: int) -> str:
    # Neither a NUL nor half a character is in any stored text, and databases refuse them.
    return query.get(name, "")[:characters_max].replace("\0", "").encode(errors="ignore").decode()


def _instant(text: str, now: datetime, name: str, errors: dict[str, str]) -> datetime | None:
    if not text:
        return None
    try:
        return parse_since(text, now)
    except ValueError:
        errors[name] = "Write a time such as 2026-01-31 08:00, or how long ago, such as 90s, 15m, 2h, 3d."
        return None

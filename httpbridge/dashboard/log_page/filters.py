"""The address of a Logs page and what it selects: the filter, each part of it in the query string.

What does not make sense there is said beside its field, and the page shows what it can.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from multidict import MultiMapping

from httpbridge.log_store.selection import LogFilter, Position
from httpbridge.logs import Level
from httpbridge.text import parse_since, rfc3339

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
CUSTOM = "custom"
"""Stands among the RANGES for a beginning or an end of one's own."""

AHEAD_MAX = timedelta(minutes=5)
"""How far clients' clocks may be ahead: what claims to be from later is shown when it is asked for."""

PLAUSIBLE_SINCE = datetime(2000, 1, 1, tzinfo=UTC)
"""A chart of all time begins no earlier, whatever the clocks of clients say."""

TEXT_CHARACTERS_MAX = 200
NAME_CHARACTERS_MAX = 256
"""As long as a service or an environment may be (docs/http-api.md)."""

_ID_DIGITS_MAX = 18


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of the form, as they were sent."""

    range: str = DEFAULT_RANGE
    """A key of RANGES, back from now; CUSTOM where there is a `since` or an `until`, and only there."""
    since: str = ""
    """An instant, or how long ago: see `parse_since`. Empty in a CUSTOM range: from the beginning."""
    until: str = ""
    """Likewise. Empty: until now."""
    level: tuple[Level, ...] = ()
    service: str = ""
    environment: str = ""
    text: str = ""

    @classmethod
    def of(cls, query: MultiMapping[str]) -> "LogQuery":
        """Read a query string; what is unknown is left out.

        A form without JavaScript may have a preset beside times of one's own. Those hold, unless the page that the form
        is on showed a custom range (`shown`): then the preset is what was chosen.
        """
        names = query.getall("level", [])
        chosen = query.get("range", "")
        since = _text(query, "since", NAME_CHARACTERS_MAX).strip()
        until = _text(query, "until", NAME_CHARACTERS_MAX).strip()
        if chosen in RANGES and query.get("shown") == CUSTOM:
            since = until = ""
        if since or until:
            chosen = CUSTOM
        elif chosen not in RANGES:
            chosen = DEFAULT_RANGE
        return cls(
            range=chosen,
            since=since,
            until=until,
            level=tuple(level for level in Level if level.value in names),
            service=_text(query, "service", NAME_CHARACTERS_MAX),
            environment=_text(query, "environment", NAME_CHARACTERS_MAX),
            text=_text(query, "text", TEXT_CHARACTERS_MAX),
        )

    def url(self, **more: Any) -> str:
        """Return the query string of this page, `?` and all; `more` replaces fields, or adds such as `before`.

        Aware UTC instants are written as such.
        """
        fields = msgspec.structs.asdict(self) | more
        if fields["since"] or fields["until"] or fields["range"] in (DEFAULT_RANGE, CUSTOM):
            del fields["range"]
        given = {
            name: rfc3339(value) if isinstance(value, datetime) else value for name, value in fields.items() if value
        }
        return "?" + urlencode(given, doseq=True)

    @property
    def is_narrow(self) -> bool:
        return bool(self.level or self.service or self.environment or self.text)

    def selection(self, project_id: str, now: datetime) -> tuple[LogFilter, dict[str, str]]:
        """Return what arrives here live, and errors by field; where there are any, that field counts as empty.

        It has no end unless one is stated; `ending` is for the page.
        """
        errors: dict[str, str] = {}
        since = _instant(self.since, now, "since", errors)
        until = _instant(self.until, now, "until", errors)
        if self.range not in ("all", CUSTOM):
            since = parse_since(self.range, now)
        elif errors and since is None and until is None:
            since = parse_since(DEFAULT_RANGE, now)
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


def ending(selection: LogFilter, now: datetime) -> LogFilter:
    """Return the selection with an end: what nothing ends ends AHEAD_MAX from now, unless it begins later."""
    if selection.until is not None or (selection.since is not None and selection.since > now):
        return selection
    return msgspec.structs.replace(selection, until=now + AHEAD_MAX)


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

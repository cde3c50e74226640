"""An entry as the dashboard shows it: a line, and all its fields below. Pure; used by `logs` and `log_stream`.

The template and the script show the same thing, so that an entry that arrives looks like one that was there.
"""

from collections.abc import Sequence

import msgspec

from httpbridge.dashboard.log_page.text import headline, laid_out_json, shown
from httpbridge.log_store.log_rows import LogRow
from httpbridge.log_store.queries import ROW_CHARACTERS_MAX
from httpbridge.times import rfc3339

HEADLINE_CHARACTERS_MAX = 300
NO_TEXT = "(no text)"
"""Stands for a message of nothing that can be seen, in the line that is clicked."""

TEXT_CHARACTERS_MAX = 4_000
"""Of each text of an entry among others."""

ENTRY_TEXTS_MAX = 4
"""An entry is shown as far as so many texts of the greatest length go, so that a page stays small."""

_FIELDS = ("service", "environment", "release", "trace_id", "span_id", "request_id", "vercel_id", "context")


class Part(msgspec.Struct, frozen=True):
    """A field of an entry."""

    name: str
    text: str
    missing: int = 0
    """How many characters are not shown."""
    is_block: bool = False
    """Whether line breaks count."""


class Entry(msgspec.Struct, frozen=True):
    """One entry. Every text is harmless but for markup, which whoever puts it into a page has to escape."""

    id: int
    timestamp: str
    """RFC 3339, UTC, as `received_at`."""
    received_at: str
    level: str
    service: str
    headline: str
    parts: Sequence[Part]
    is_short: bool
    """Whether something is missing that the entry by itself would show."""


def entry_of(row: LogRow, *, is_alone: bool = False) -> Entry:
    """Return what is shown of a row; more of it when it is alone on its page."""
    log = row.log
    characters_max = ROW_CHARACTERS_MAX if is_alone else TEXT_CHARACTERS_MAX
    room = ENTRY_TEXTS_MAX * characters_max
    parts: list[Part] = []
    for name in ("message", "metadata", *_FIELDS):
        text = getattr(log, name)
        if text is None:
            continue
        is_json = name == "metadata"
        lay_out, most = (laid_out_json, 2 * characters_max) if is_json else (shown, characters_max)
        seen = lay_out(text, row.characters.get(name, len(text)), min(most, room))
        room -= len(seen.text)
        parts.append(Part(name, seen.text, seen.missing, is_block=is_json or name == "message"))
    parts.append(Part("key_id", log.key_id))
    return Entry(
        log.id,
        rfc3339(log.timestamp),
        rfc3339(log.received_at),
        log.level,
        headline(log.service, HEADLINE_CHARACTERS_MAX),
        headline(log.message, HEADLINE_CHARACTERS_MAX) or NO_TEXT,
        parts,
        is_short=any(part.missing for part in parts),
    )

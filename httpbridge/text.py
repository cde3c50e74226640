"""How times and other people's texts are read and written, in the command line and in the dashboard. Pure."""

import re
from datetime import UTC, datetime, timedelta

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")

# Printable by Unicode, and yet nothing is seen of them.
_INVISIBLE = dict.fromkeys(
    map(
        ord,
        "\u034f"  # combining grapheme joiner
        "\u115f\u1160\u3164\uffa0"  # fillers of Hangul
        "\u2800",  # a Braille pattern without a dot
    ),
    " ",
)


def parse_since(text: str, now: datetime) -> datetime:
    """Read a start: an RFC 3339 instant (no zone means UTC), or a duration before `now` such as `90s`, `15m`, `2h`.

    The units are s, m, h, d (24 hours) and w. Raises ValueError, with a text for the user.
    """
    try:
        if duration := _DURATION.fullmatch(text):
            return now - timedelta(seconds=int(duration[1]) * _UNIT_SECONDS[duration[2]])
        instant = datetime.fromisoformat(text)
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is neither a time such as 2026-01-31T08:00:00Z nor a duration such as 15m"
        ) from None


def rfc3339(instant: datetime) -> str:
    """Write an aware UTC instant as `2026-11-23T20:15:00.123456Z`."""
    return instant.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def single_spaced(text: str) -> str:
    """Return the text with white space, and what looks like it, made one space, and none at its ends."""
    return " ".join(text.translate(_INVISIBLE).split())


def escaped(char: str) -> str:
    """Return a character that does not print as Python's escape for it, and any other as it is."""
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def printable(text: str, characters_max: int) -> str:
    """Escape what does not print (control characters, ANSI sequences, line breaks, bidi marks), and cut long texts."""
    cut = len(text) - characters_max
    shown = "".join(map(escaped, text[:characters_max]))
    return f"{shown}… ({cut} more characters)" if cut > 0 else shown


def byte_text(number: float) -> str:
    """Write a number of bytes with three digits: `512 B`, `1.23 MB`."""
    power = 0
    while number >= 999.5 and power < len(_BYTE_UNITS) - 1:
        number /= 1000
        power += 1
    digits = 0 if power == 0 or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {_BYTE_UNITS[power]}"

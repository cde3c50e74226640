"""An entry as pages and live tails show it: harmless to look at, and short. Pure; used by the templates.

Logs come from anyone with a key. Templates escape markup; here control characters, terminal codes and marks that
turn text around become visible escapes, long texts are cut, and JSON is laid out as it was written: never parsed,
so that no number, repeated key or escape changes.
"""

import re
from functools import lru_cache
from unicodedata import category

import msgspec

from httpbridge.log_store.queries import ROW_CHARACTERS_MAX
from httpbridge.log_store.selection import LogRow
from httpbridge.text import escaped, single_spaced

HEADLINE_CHARACTERS_MAX = 300
TEXT_CHARACTERS_MAX = 4_000
"""Of each text of an entry among others."""

ENTRY_TEXTS_MAX = 4
"""An entry is shown as far as so many texts of the greatest length go, so that a page stays small."""

INDENT_LEVELS_MAX = 24
"""Deeper nesting is laid out at this depth: brackets alone could make a page of spaces otherwise."""

_FIELDS = (
    "message", "metadata", "service", "environment", "release", "trace_id", "span_id", "request_id", "vercel_id",
    "context",
)  # fmt: skip

_UNUSUAL = re.compile(r"\r\n|(?:[^\r\n\t -~]|\r(?!\n))+")
_JSON_WORD = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class Field(msgspec.Struct, frozen=True):
    """A field of an entry. Its text is harmless but for markup, which the template escapes."""

    name: str
    text: str
    missing: int = 0
    """How many characters are not shown."""
    is_block: bool = False
    """Whether line breaks count."""


def fields_of(row: LogRow, *, is_alone: bool = False) -> list[Field]:
    """Return what is shown of a row, besides its times and level; more of it when it is alone on its page."""
    characters_max = ROW_CHARACTERS_MAX if is_alone else TEXT_CHARACTERS_MAX
    room = ENTRY_TEXTS_MAX * characters_max
    fields: list[Field] = []
    for name in _FIELDS:
        text = getattr(row.log, name)
        if text is None:
            continue
        is_json = name == "metadata"
        lay_out, most = (laid_out_json, 2 * characters_max) if is_json else (shown, characters_max)
        seen, missing = lay_out(text, row.characters.get(name, len(text)), min(most, room))
        room -= len(seen)
        fields.append(Field(name, seen, missing, is_block=is_json or name == "message"))
    return [*fields, Field("key_id", row.log.key_id)]


def shown(text: str, characters: int, characters_max: int) -> tuple[str, int]:
    """Escape a text, of which `characters` are stored, as far as it fits; line breaks and tabs stay.

    Return also how many characters of the whole are missing.
    """
    seen, taken = visible(text, characters_max)
    return seen, characters - taken


def headline(text: str, characters_max: int = HEADLINE_CHARACTERS_MAX) -> str:
    """Return the beginning of a text as one line."""
    line = single_spaced(text[:characters_max])
    seen, taken = visible(line, characters_max)
    return seen + "…" if taken < len(line) or len(text) > characters_max else seen


def visible(text: str, characters_max: int) -> tuple[str, int]:
    """Escape what does not print, but for line breaks, tabs and spaces, which become plain ones.

    Return at most `characters_max`, and how many characters of the text these stand for: an escape has up to ten.
    """
    parts: list[str] = []
    room = characters_max
    end = 0
    for match in _UNUSUAL.finditer(text):
        run = match[0]
        if run.isprintable():
            continue
        plain = match.start() - end
        if plain >= room:
            break
        parts.append(text[end : match.start()])
        room -= plain
        end = match.start()
        for char in (run,) if run == "\r\n" else run:
            shown_char = "\n" if char == "\r\n" else _escaped(char)
            if len(shown_char) > room:
                return "".join(parts), end
            parts.append(shown_char)
            room -= len(shown_char)
            end += len(char)
    rest = text[end : end + room]
    return "".join(parts) + rest, end + len(rest)


@lru_cache(maxsize=4096)
def _escaped(char: str) -> str:
    return " " if category(char) == "Zs" else escaped(char)


def laid_out_json(text: str, characters: int, characters_max: int) -> tuple[str, int]:
    """Lay a JSON text out, a value a line, whole or cut anywhere; likewise. The missing ones are those of the text."""
    parts: list[str] = []
    length = depth = 0
    end = 0
    before = ""
    text = text.replace("\r", "\n")  # between two words; in a string it is an escape already
    seen, taken = visible(text, characters_max)  # what does not print is in a string, and its escape stays there
    for match in _JSON_WORD.finditer(seen):
        word = match[0]
        part = word
        if word in "}]":
            depth = max(0, depth - 1)
            part = word if before in ("{", "[") else _new_line(depth) + word
        elif before in ("{", "[", ","):
            part = _new_line(depth) + word
        elif before == ":":
            part = " " + word
        if word in "{[":
            depth += 1
        if length + len(part) > characters_max:
            room = characters_max - length - (len(part) - len(word))
            if room > 0:
                parts.append(part[: characters_max - length])
                end = match.start() + room
            break
        parts.append(part)
        length += len(part)
        end = match.end()
        before = word
    else:
        end = len(seen)
    if end < len(seen):
        _, taken = visible(text, end)
    return "".join(parts), characters - taken


def _new_line(depth: int) -> str:
    return "\n" + "  " * min(depth, INDENT_LEVELS_MAX)

"""Stored text made harmless to look at, and short. Pure; used by `log_entries`.

Logs come from anyone with a key. Templates escape markup; here control characters, terminal codes and marks that
turn text around become visible escapes, long texts are cut, and JSON is laid out as it was written: never parsed,
so that no number, repeated key or escape changes.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import category

from httpbridge.dashboard.invisible_characters import single_spaced

INDENT_LEVELS_MAX = 24
"""Deeper nesting is laid out at this depth: brackets alone could make a page of spaces otherwise."""

_UNUSUAL = re.compile(r"\r\n|(?:[^\r\n\t -~]|\r(?!\n))+")
_JSON_WORD = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as it is shown, and how many characters of the whole are not."""

    text: str
    missing: int


def shown(text: str, characters: int, characters_max: int) -> Shown:
    """Escape a text, of which `characters` are stored, as far as it fits; line breaks and tabs stay."""
    seen, taken = visible(text, characters_max)
    return Shown(seen, characters - taken)


def headline(text: str, characters_max: int) -> str:
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
            escaped = "\n" if char == "\r\n" else _escaped(char)
            if len(escaped) > room:
                return "".join(parts), end
            parts.append(escaped)
            room -= len(escaped)
            end += len(char)
    rest = text[end : end + room]
    return "".join(parts) + rest, end + len(rest)


@lru_cache(maxsize=4096)
def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return " " if category(char) == "Zs" else char.encode("unicode_escape").decode()


def laid_out_json(text: str, characters: int, characters_max: int) -> Shown:
    """Lay a JSON text out, a value a line, whole or cut anywhere; `characters` of it are stored.

    At most `characters_max` come out; the count of missing ones is of the text as it is stored.
    """
    parts: list[str] = []
    length = depth = 0
    end = 0
    before = ""
    text = text.replace("\r", "\n")  # between two words; in a string it is an escape already
    escaped, taken = visible(text, characters_max)  # what does not print is in a string, and its escape stays there
    for match in _JSON_WORD.finditer(escaped):
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
        end = len(escaped)
    if end < len(escaped):
        _, taken = visible(text, end)
    return Shown("".join(parts), characters - taken)


def _new_line(depth: int) -> str:
    return "\n" + "  " * min(depth, INDENT_LEVELS_MAX)

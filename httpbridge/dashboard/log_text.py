"""Stored text made harmless to look at, and short. Pure; used by `log_entries`.

Logs come from anyone with a key. Templates escape markup; here control characters, terminal codes and marks that
turn text around become visible escapes, long texts are cut, and JSON is laid out as it was written: never parsed,
so that no number, repeated key or escape changes.
"""

import re
from dataclasses import dataclass

INDENT_LEVELS_MAX = 24
"""Deeper nesting is laid out at this depth: brackets alone could make a page of spaces otherwise."""

_JSON_WORD = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as it is shown, and how many characters of the whole are not."""

    text: str
    missing: int


def shown(text: str, characters: int, characters_max: int) -> Shown:
    """Cut and escape a text, of which `characters` are stored; line breaks and tabs stay."""
    cut = text[:characters_max]
    return Shown(visible(cut), characters - len(cut))


def headline(text: str, characters_max: int) -> str:
    """Return the beginning of a text as one line."""
    cut = text[:characters_max]
    line = visible(" ".join(cut.split()))
    return line + "…" if len(text) > len(cut) else line


def visible(text: str) -> str:
    """Escape what does not print, but for line breaks and tabs; such a page shows it as it was sent."""
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def laid_out_json(text: str, characters: int, characters_max: int) -> Shown:
    """Lay a JSON text out, a value a line, whole or cut anywhere; `characters` of it are stored.

    At most `characters_max` come out, but for the escapes; the count of missing ones is of the text as it is stored.
    """
    parts: list[str] = []
    length = depth = 0
    end = 0
    before = ""
    for match in _JSON_WORD.finditer(text):
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
        end = len(text)
    return Shown(visible("".join(parts)), characters - end)


def _new_line(depth: int) -> str:
    return "\n" + "  " * min(depth, INDENT_LEVELS_MAX)

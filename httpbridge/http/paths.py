"""Request targets to the paths that are served. Pure. Used by the public server and the dashboard."""

import re

_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_SLASHES = re.compile("//+")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
"""Characters that mean the same escaped and not (RFC 3986, 2.3): some clients escape them all the same."""


def path_of(target: str) -> str:
    """Return the path of a request target in origin or absolute form (RFC 9112, 3.2)."""
    path = target.partition("?")[0]
    if path[:7].lower() == "http://" or path[:8].lower() == "https://":
        _, slash, rest = path.partition("//")[2].partition("/")
        return slash + rest
    return path


def canonical_path(path: str) -> str:
    """Return what several spellings of a path have in common.

    Escaped plain characters are plain, several slashes are one, and one at the end is none.
    """
    path = _SLASHES.sub("/", _ESCAPED.sub(_plain, path))
    return path if path == "/" else path.removesuffix("/")


def _plain(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _PLAIN else match[0]

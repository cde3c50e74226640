"""The API key: its format and digest, and a type that keeps it out of every log. Pure."""

import re
from hashlib import sha256
from typing import NewType, Self

PREFIX = "dt_"
_FORMAT = re.compile(r"dt_[0-9a-f]{24}")

Digest = NewType("Digest", bytes)
"""SHA-256 of an API key, 32 bytes: all that is stored or cached of it. A key has 96 random bits, so the digest needs
neither salt nor stretching."""


def digest_of(text: str) -> Digest | None:
    """Return the digest of an API key, None when the text is not one."""
    return Digest(sha256(text.encode()).digest()) if _FORMAT.fullmatch(text) else None


class ApiKey:
    """A well-formed API key, `dt_` and 24 lower-case hex digits. Its `repr` and `str` are redacted."""

    __slots__ = ("_text", "digest")

    def __init__(self, text: str) -> None:
        """Raise ValueError, which does not repeat the text, when it is not a key."""
        if _FORMAT.fullmatch(text) is None:
            raise ValueError("not an API key: dt_ and 24 lower-case hex digits are expected")
        self._text = text
        self.digest = Digest(sha256(text.encode()).digest())

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the key, or None when the text is not one."""
        try:
            return cls(text)
        except ValueError:
            return None

    def reveal(self) -> str:
        """Return the API key itself, to be sent to the key service or shown to its owner once."""
        return self._text

    def __repr__(self) -> str:
        return "ApiKey(dt_…)"

    __str__ = __repr__

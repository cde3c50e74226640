"""Configuration from environment variables, and the types its values have.

Each service declares a frozen msgspec struct whose fields, prefixed and in upper
case, are its variables; `read` fills it and names the variable that is wrong.
"""

import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from authsvc.client.networks import Networks

_T = TypeVar("_T", bound=msgspec.Struct)


class ConfigurationError(Exception):
    """A configuration that cannot be used; the message is one line for the operator and names the variable."""


class Secret:
    """A token or a URL with a password; `repr` and `str` are redacted."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__


class Token(Secret):
    """A bearer token: printable ASCII without spaces, which is what gRPC metadata and HTTP headers carry.

    It has at least 32 characters, so that nobody guesses it: of hex digits, those are 128 bits.
    """

    __slots__ = ()
    CHARACTERS_MIN = 32

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token as it was configured or as a file holds it; white space around it does not count.

        Raises ValueError, which does not repeat the text, when it cannot be sent or is too short.
        """
        text = text.strip()
        if not re.fullmatch(r"[!-~]+", text):
            raise ValueError("expected a token: printable ASCII without spaces")
        if len(text) < cls.CHARACTERS_MIN:
            raise ValueError(
                f"expected a token of at least {cls.CHARACTERS_MIN} characters, such as 'openssl rand -hex 32' prints"
            )
        return cls(text)


def make_folder(path: Path, variable: str) -> None:
    """Make the folder that a variable names, for this user only, if there is none; raise ConfigurationError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{variable}: {path}: {error.strerror}") from None


def kept_token(path: Path) -> Token:
    """Return the token in a file, generated (mode 0600) if there is no such file.

    Raises ConfigurationError when the file can be neither read nor made, or holds something else.
    """
    try:
        if not path.exists():
            _make_token(path)
        return Token.parse(path.read_text("utf-8", "replace"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}; remove it to have one generated") from None


def _make_token(path: Path) -> None:
    """Write a new token, unless somebody else does so first.

    It is linked into place when it is whole, so that a process which starts at the same time never reads half of it,
    and of two that start at once both take the first one's.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w") as draft:
            draft.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):
            path.hardlink_to(name)
    finally:
        Path(name).unlink()


class Address:
    """A host and a port to listen on or to connect to. The host of an IPv6 literal is kept without brackets."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`, `[ipv6]:port` or `:port` (loopback); raise ValueError saying what is expected."""
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]\ud800-\udfff]*)):([0-9]{1,5})", text)
        if match is None or int(match[3]) > 65535:
            raise ValueError("expected HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
        return cls(match[1] or match[2] or "127.0.0.1", int(match[3]))

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _decode(kind: type, value: Any) -> Any:
    if kind is Address:
        return Address.parse(value)
    if kind is Token:
        return Token.parse(value)
    if kind is Secret:
        return Secret(value)
    if kind is Path:
        return Path(value)
    if kind is Networks:
        return Networks.parse(value)
    raise NotImplementedError(kind)


def read(struct: type[_T], prefix: str, environ: Mapping[str, str]) -> _T:
    """Fill `struct` from the variables `<prefix><FIELD>`; an empty variable counts as unset.

    Raises ConfigurationError naming the first variable whose value does not fit.
    """
    values = {}
    for field in msgspec.structs.fields(struct):
        if value := environ.get(variable := prefix + field.name.upper()):
            try:  # one at a time, so that the error can name the variable
                msgspec.convert({field.name: value}, struct, strict=False, dec_hook=_decode)
            except (msgspec.ValidationError, ValueError) as error:
                raise ConfigurationError(f"{variable}: {_reason(field.type, error)}") from None
            values[field.name] = value
    return msgspec.convert(values, struct, strict=False, dec_hook=_decode)


def _reason(kind: Any, error: Exception) -> str:
    if kind is bool:
        return "expected true or false"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "expected one of " + ", ".join(str(member.value) for member in kind)
    return re.sub(r" - at `\$[^`]*`$", "", str(error))

"""Configuration from environment variables, and the types its values have.

Each service declares a frozen msgspec struct whose fields, prefixed and in upper case, are its variables; `read` fills
it and names the variable that is wrong. A misspelt name stops the start, so that no setting is taken to be in force
that is not.
"""

import ipaddress
import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, Self, TypeVar, get_args

import msgspec

from authsvc.runtime.networks import Networks

_T = TypeVar("_T", bound=msgspec.Struct)

_NAMES = {
    "AUTHSVC_": """
        ADDRESS ADMIN_TOKEN ALLOW_INSECURE API_KEY BRIDGE_TOKEN CA CLIENT_CERT CLIENT_KEY DATABASE_URL
        LEASE_MARGIN_SECONDS LEASE_SECONDS LISTEN LOG_FORMAT LOG_LEVEL REFLECTION STATE_DIR TLS_CERT TLS_CLIENT_CA
        TLS_KEY TRUSTED_PROXIES WORKERS
    """,
    "HTTPBRIDGE_": """
        ADMIN_TOKEN ALLOW_INSECURE BODY_BYTES_MAX BYTES_PER_MINUTE CACHE_TTL_SECONDS DASHBOARD_LISTEN DASHBOARD_TOKEN
        KEEPALIVE_SECONDS KEY_SERVICE KEY_SERVICE_CA KEY_SERVICE_CERT KEY_SERVICE_CERT_KEY KEY_SERVICE_TOKEN LISTEN
        LOG_FORMAT LOG_LEVEL LOG_STORE_URL PUBLIC_URL RATE_LIMIT_PER_MINUTE RETENTION_DAYS STATE_DIR STORE_BYTES_MAX
        TLS_CERT TLS_KEY TRUSTED_PROXIES WORKERS
    """,
}
KNOWN = frozenset(prefix + name for prefix, names in _NAMES.items() for name in names.split())
"""The variables of both services. Each knows the other's: they are often set together, and one is taken for the other.

A test holds them to what the services read.
"""

# Kubernetes for each Service in the namespace, Docker for each link; theirs may be called authsvc or httpbridge.
_INJECTED = re.compile(r".+_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT|PORT_\d+_(?:TCP|UDP)(?:_.+)?)")

_SWITCH_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Besides what msgspec takes: true, false, 1, 0."""


class ConfigurationError(Exception):
    """A configuration that cannot be used; the message is one line for the operator and names the variable."""


class Secret:
    """A token or a URL with a password; `repr` and `str` are redacted."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
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


class Address(NamedTuple):
    """A host and a port to connect to. The host of an IPv6 literal is kept without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port` or `[ipv6]:port`; no host, or one that means every interface, is this machine.

        Raises ValueError saying what is expected.
        """
        host, port = _host_and_port(text)
        return cls(_OF_THIS_MACHINE.get(host, host), port)

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def host_to_bind(self) -> str | None:
        """The host as `getaddrinfo` takes it to listen on: None for every interface."""
        return None if self.host == _EVERY_INTERFACE else self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ListenAddress(Address):
    """A host and a port to listen on; the host `*` is every interface, IPv4 and IPv6."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`, `[ipv6]:port`, or for every interface `:port` or `*:port`; raise ValueError likewise."""
        host, port = _host_and_port(text)
        return cls(host or _EVERY_INTERFACE, port)

    @property
    def is_every_interface(self) -> bool:
        """Whether it is every interface, of one family at least, and so not an address to connect to."""
        return self.host in _OF_THIS_MACHINE

    def to_connect(self) -> Address:
        """Return where this machine reaches it."""
        return Address(_OF_THIS_MACHINE.get(self.host, self.host), self.port)


_EVERY_INTERFACE = "*"
_OF_THIS_MACHINE = {"": "127.0.0.1", _EVERY_INTERFACE: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Hosts that mean every interface where something listens, and where it is reached then."""


def _host_and_port(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]\ud800-\udfff]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    host = match[1] or match[2]
    try:
        host.encode("idna")
    except UnicodeError:  # which looking it up would raise
        raise ValueError("expected HOST:PORT with the name of a host") from None
    return host, int(match[3])


def read(struct: type[_T], prefix: str, environ: Mapping[str, str]) -> _T:
    """Fill `struct` from the variables `<prefix><FIELD>`; an empty variable counts as unset.

    Raises ConfigurationError naming the first variable that neither service has, or whose value does not fit.
    """
    fields = {prefix + field.name.upper(): field for field in msgspec.structs.fields(struct)}
    _check_names(environ, KNOWN.union(fields))
    values = {}
    for variable, field in fields.items():
        if text := environ.get(variable):
            try:
                values[field.name] = _value(field.type, text)
            except ValueError as error:
                raise ConfigurationError(f"{variable}: {error}") from None
    return struct(**values)


def _check_names(environ: Mapping[str, str], known: frozenset[str]) -> None:
    """Raise ConfigurationError for a variable that is set and looks like ours, but for its case, and is not known."""
    for name, value in environ.items():
        is_ours = name.startswith(tuple(_NAMES)) and not _INJECTED.fullmatch(name)
        if value and name not in known and (is_ours or name.upper() in known):
            [nearest] = get_close_matches(name.upper(), sorted(known), n=1, cutoff=0)
            raise ConfigurationError(f"{name}: there is no such variable; did you mean {nearest}?")


def _value(kind: Any, text: str) -> Any:
    """Read a value as operators write it; raise ValueError, which does not repeat it, saying what is expected."""
    text = text.strip()
    if not text:
        raise ValueError("expected a value: it is white space alone")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise ValueError("expected a value without quotes around it")
    base, limits = _base(kind)
    if issubclass(base, Address | Networks | Token):
        return base.parse(text)
    if base is Secret:
        return Secret(text)
    if base is Path:
        return _path(text)
    if base is bool:
        text = _SWITCH_WORDS.get(text.lower(), text)
    elif issubclass(base, Enum):
        text = text.lower()
    try:
        return msgspec.convert(text, Annotated[base, limits] if limits else base, strict=False)
    except msgspec.ValidationError:
        raise ValueError(_expected(base, limits)) from None


def _base(kind: Any) -> tuple[type, msgspec.Meta | None]:
    """Return the type of a field without `| None`, and its limits."""
    limits = None
    while parts := get_args(kind):
        limits = next((part for part in parts if isinstance(part, msgspec.Meta)), limits)
        kind = next(part for part in parts if part is not NoneType)
    return kind, limits


def _path(text: str) -> Path:
    """Read a path, which may begin with `~` or `~user`; raise ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:  # no URL and no line of a log can have it
        raise ValueError("expected a path in UTF-8") from None
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"nobody knows the home directory of {Path(text).parts[0]}") from None


def _expected(base: type, limits: msgspec.Meta | None) -> str:
    if issubclass(base, Enum):
        return "expected one of " + ", ".join(str(member.value) for member in base)
    if base is bool:
        return "expected true or false"
    within = ""
    if limits is not None:
        within = f" of at least {limits.ge}" if limits.le is None else f" from {limits.ge} to {limits.le}"
    return f"expected a {'whole ' if base is int else ''}number{within}, in digits and without a unit"

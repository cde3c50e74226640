"""What a database's URL means, for both services: `sqlite:///FILE`, or `postgresql://…` as libpq reads it.

Nothing is connected here; `postgres` does that. What libpq knows and our driver cannot do is refused, by the
parameter's name: starting without it would not be what was asked for. No error repeats a value, as each may be a part
of a password that was not percent-encoded.

The grammar and the parameters are those of PostgreSQL 18: https://www.postgresql.org/docs/18/libpq-connect.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from authsvc.runtime.environment import Secret

_SHAPES = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
_HINT = "a special character in a user, password or name is written percent-encoded, such as %40 for @"

_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    # Of these, the values that ask for no more than what the driver does anyway.
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("UTF8",),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "keepalives": ("0",),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0",),
    "min_protocol_version": ("3.0",),
    "replication": ("false", "off", "no", "0"),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    "tcp_user_timeout": ("0",),
}
"""The parameters of which only some values can be used."""

_TLS_FILES = ("sslrootcert", "sslcrl", "sslcert", "sslkey")
_TLS = ("sslmode", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version", "sslpassword", *_TLS_FILES)
_TEXTS = ("user", "password", "dbname", "passfile", "options", "application_name", "fallback_application_name")
_USED = frozenset((*_CHOICES, *_TLS, *_TEXTS, "host", "port", "connect_timeout"))
_REFUSED = {
    "gsslib", "hostaddr", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "oauth_ca_file",
    "oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope", "require_auth", "requirepeer",
    "scram_client_key", "scram_server_key", "service", "servicefile", "sslcrldir", "sslkeylogfile",
}  # fmt: skip
"""libpq's other parameters."""


class SetupError(Exception):
    """A database cannot be used as it is set up, and waiting does not mend it; one line, with nothing secret in it."""


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """A PostgreSQL database as a URL describes it. What is absent has libpq's default, the `PG…` variables included."""

    hosts: tuple[tuple[str, int | None], ...] = ()
    """Names, addresses or directories of a Unix socket, in the order in which they are tried, with their ports."""
    user: str | None = None
    password: Secret | None = None
    database: str | None = None
    passfile: Path | None = None
    options: str | None = None
    application_name: str | None = None
    connect_seconds: float | None = None
    """For each host."""
    target_session_attrs: str | None = None
    tls: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The parameters whose names begin with `ssl`."""


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file, whatever characters its path has."""
    return f"sqlite:///{quote(str(path))}"


def parse_database_url(url: str) -> Path | PostgresAddress:
    """Return the file of a `sqlite:` URL, or where the database of a PostgreSQL URL is. Raises SetupError."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite":
        return _sqlite_file(rest)
    if separator and scheme in ("postgresql", "postgres"):
        return _address(_parameters(rest))
    known = re.fullmatch(r"(sqlite|postgres(?:ql)?)\+[a-z0-9]+", scheme)
    if known:
        raise SetupError(f"the URL names a driver, which is not for it to choose: begin it with {known[1]}://")
    raise SetupError(f"not a database URL: expected {_SHAPES}")


def _sqlite_file(rest: str) -> Path:
    if "?" in rest:
        raise SetupError("a sqlite: URL cannot have options after ?; a ? in a file's name is written %3F")
    path = _decoded(rest[1:]) if rest.startswith("/") else ""
    if path in ("", ":memory:") or path.startswith("file:"):
        raise SetupError("a sqlite: URL needs a file: sqlite:///FILE, with four slashes for an absolute path")
    return Path(path)


def _parameters(rest: str) -> dict[str, str]:
    """Read what follows the scheme, as libpq's `conninfo_uri_parse_options` does."""
    found: dict[str, str] = {}
    credentials = re.match(r"([^@/]*)@", rest)
    if credentials:
        rest = rest[credentials.end() :]
        user, _, password = credentials[1].partition(":")
        found |= {"user": _decoded(user), "password": _decoded(password)}
    authority, mark, query = rest.partition("?")
    authority, _, name = authority.partition("/")
    if "@" in authority + name:
        raise SetupError(f"not a database URL: {_HINT}")
    hosts, ports = [], []
    for place in authority.split(","):
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]*))(?::([^:]*))?", place)
        if match is None:
            raise SetupError(f"not a host and port: an IPv6 address stands in brackets; {_HINT}")
        hosts.append(_decoded(match[1] or match[2] or ""))
        ports.append(_decoded(match[3] or ""))
    found |= {"host": ",".join(hosts), "port": ",".join(ports), "dbname": _decoded(name)}
    if mark:
        found |= _query(query)
    return {name: value for name, value in found.items() if value}


def _query(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, is_pair, value = pair.partition("=")
        if not is_pair or "=" in value:
            raise SetupError(f"expected NAME=VALUE after ?, with & between them; {_HINT}")
        name, value = _decoded(name), _decoded(value)
        if (name, value) == ("ssl", "true"):  # JDBC's way, which libpq takes
            name, value = "sslmode", "require"
        if name in found:
            raise SetupError(f"{name} stands twice")
        if name in _REFUSED:
            raise SetupError(f"the parameter {name} is not supported: leave it out")
        if name not in _USED:
            if not re.fullmatch(r"[a-z_]{1,40}", name) or "@" in query:  # it may be a part of a password
                name = "one after ?"
            raise SetupError(f"no such parameter of a PostgreSQL URL: {name}")
        if value and name in _CHOICES and value not in _CHOICES[name]:
            raise SetupError(f"the parameter {name} can only be {' or '.join(_CHOICES[name])}")
        found[name] = value
    return found


def _decoded(text: str) -> str:
    """Decode percent-encoding alone: a plus sign is a plus sign."""
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
        raise SetupError("a % must be followed by two hexadecimal digits, and stand for no zero byte")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        raise SetupError("not UTF-8 once it is percent-decoded") from None


def _address(found: dict[str, str]) -> PostgresAddress:
    password = found.get("password")
    passfile = found.get("passfile")
    return PostgresAddress(
        hosts=_hosts(found.get("host", ""), found.get("port", "")),
        user=found.get("user"),
        password=Secret(password) if password else None,
        database=found.get("dbname"),
        passfile=Path(passfile) if passfile else None,
        options=found.get("options"),
        application_name=found.get("application_name") or found.get("fallback_application_name"),
        connect_seconds=_seconds(found["connect_timeout"]) if "connect_timeout" in found else None,
        target_session_attrs=found.get("target_session_attrs"),
        tls=_checked_tls({name: found[name] for name in _TLS if name in found}),
    )


def _hosts(host: str, port: str) -> tuple[tuple[str, int | None], ...]:
    hosts, ports = host.split(","), port.split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise SetupError("there must be one port, or as many as hosts")
    for name in hosts:
        if re.search(r"[\s@\[]|^[^/:]*:[^:]*$", name):
            raise SetupError("the parameter host has names, addresses or directories; ports go into port")
    places = tuple((name, _port(number) if number else None) for name, number in zip(hosts, ports, strict=True))
    return places if any(name or number for name, number in places) else ()


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise SetupError(f"a port must be a number from 1 to 65535; {_HINT}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) == 0:
        raise SetupError("the parameter connect_timeout must be a whole number of seconds, from 1 to 9999")
    return int(text)


def _checked_tls(tls: dict[str, str]) -> dict[str, str]:
    """Make `sslrootcert=system` imply the strictest `sslmode`; refuse a weaker one."""
    if tls.get("sslrootcert") == "system" and tls.setdefault("sslmode", "verify-full") != "verify-full":
        raise SetupError("the parameter sslrootcert can be system with sslmode verify-full only")
    if tls.get("sslnegotiation") == "direct" and tls.get("sslmode") not in ("require", "verify-ca", "verify-full"):
        raise SetupError("the parameter sslnegotiation can be direct with sslmode require or stricter only")
    return tls

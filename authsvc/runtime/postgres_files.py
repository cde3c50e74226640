"""What the files that a PostgreSQL URL names are for: certificates, keys, and passwords. Called by `postgres`.

They are read anew for each connection, so that renewed ones are found without a restart.
"""

import getpass
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from authsvc.runtime.database_url import PostgresAddress, SetupError

_FIELD = re.compile(r"((?:[^:\\]|\\.|\\$)*)(?::|$)", re.DOTALL)
_PASSWORD = 4


def tls_options(tls: Mapping[str, str]) -> dict[str, Any]:
    """Return what tells the driver of TLS; raise SetupError naming the parameter whose file is wrong."""
    is_system = tls.get("sslrootcert") == "system"
    context = ssl.create_default_context() if is_system else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        if name in tls and not (is_system and name == "sslrootcert"):
            with _named(name):
                context.load_verify_locations(tls[name])
    if "sslcert" in tls:
        with _named("sslcert, sslkey" if "sslkey" in tls else "sslcert"):
            context.load_cert_chain(tls["sslcert"], tls.get("sslkey"), tls.get("sslpassword", ""))
    if not is_system:
        return {"dsn": f"postgresql://?{urlencode(tls)}"} if tls else {}
    # The driver knows no such word.
    if "sslcrl" in tls:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    context.minimum_version = _version(tls.get("ssl_min_protocol_version", "TLSv1.2"))
    if "ssl_max_protocol_version" in tls:
        context.maximum_version = _version(tls["ssl_max_protocol_version"])
    return {"ssl": context, "direct_tls": tls.get("sslnegotiation") == "direct"}


def password_for(address: PostgresAddress, host: str, port: int | None) -> str | None:
    """Return the password that the URL has, or the file that it names, for one of its hosts; None where it has none.

    Raises SetupError for a file that libpq would pass over.
    """
    if address.password is not None or address.passfile is None:
        return address.password.reveal() if address.password else None
    with _named("passfile"):
        if address.passfile.stat().st_mode & 0o077:
            raise SetupError("passfile: others than its owner may use it: its mode must be 0600 or less")
        lines = address.passfile.read_text("utf-8", "replace").splitlines()
    user = address.user or os.environ.get("PGUSER") or getpass.getuser()
    database = address.database or os.environ.get("PGDATABASE") or user
    return _find_password(lines, host or "localhost", port or int(os.environ.get("PGPORT", "5432")), database, user)


def _find_password(lines: Iterable[str], host: str, port: int, database: str, user: str) -> str | None:
    r"""Return the password of the first line that fits: `HOST:PORT:DATABASE:USER:PASSWORD`, with `*` for any.

    `\:` and `\\` stand for themselves, which our driver does not know. The directory of a Unix socket is `localhost`.
    Grammar: https://www.postgresql.org/docs/18/libpq-pgpass.html
    """
    hosts = {host, "localhost"} if host.startswith("/") else {host}
    for line in lines:
        fields = _FIELD.findall(line)
        if line.startswith("#") or len(fields) <= _PASSWORD:
            continue
        wanted = (hosts, {str(port)}, {database}, {user})
        if all(field == "*" or _unescaped(field) in names for field, names in zip(fields, wanted, strict=False)):
            return _unescaped(fields[_PASSWORD])
    return None


def _unescaped(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field, flags=re.DOTALL)


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Raise SetupError for a file that cannot be read, or holds something else."""
    try:
        yield
    except ssl.SSLError as error:
        raise SetupError(f"{what}: {(error.reason or 'not PEM').replace('_', ' ').lower()}") from None
    except OSError as error:
        raise SetupError(f"{what}: {error.strerror or type(error).__name__}") from None

r"""libpq's password file: `HOST:PORT:DATABASE:USER:PASSWORD` a line, `*` for any, `\:` and `\\` for themselves.

Read here, as our driver leaves the backslashes in. Grammar: https://www.postgresql.org/docs/18/libpq-pgpass.html
"""

import re
from collections.abc import Iterable

_FIELD = re.compile(r"((?:[^:\\]|\\.|\\$)*)(?::|$)", re.DOTALL)
_PASSWORD = 4


def find_password(lines: Iterable[str], host: str, port: int, database: str, user: str) -> str | None:
    """Return the password of the first line that fits; `host` may be the folder of a Unix socket, which `localhost` is.

    None where no line fits.
    """
    hosts = {host, "localhost"} if host.startswith("/") else {host}
    for line in lines:
        fields = _FIELD.findall(line.rstrip("\r\n"))
        if line.startswith("#") or len(fields) <= _PASSWORD:
            continue
        wanted = (hosts, {str(port)}, {database}, {user})
        if all(field == "*" or _unescaped(field) in names for field, names in zip(fields, wanted, strict=False)):
            return _unescaped(fields[_PASSWORD])
    return None


def _unescaped(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field, flags=re.DOTALL)

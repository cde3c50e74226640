"""The extra `server`: what the services need beyond what the client library does.

pip installs both commands without it, too. They say then what is missing, before they import any of it.
"""

import sys
from importlib.util import find_spec

from authsvc.runtime.standard_streams import discard, open_missing

MODULES = (
    "aiohttp",
    "aiosqlite",
    "alembic",
    "asyncpg",
    "click",
    "grpc_health",
    "grpc_reflection",
    "idna",
    "itsdangerous",
    "jinja2",
    "publicsuffixlist",
    "sqlalchemy",
    "structlog",
    "trustme",
    "uvloop",
)

_USAGE = 2


def require(command: str) -> None:
    """End the process with one line on standard error, and status 2, when the extra is not installed."""
    if all(map(find_spec, MODULES)):
        return
    open_missing()
    try:
        sys.stderr.write(f"{command}: not installed with the services: pip install 'deeptracer-auth[server]'\n")
    except OSError:
        discard(sys.stderr)
    sys.exit(_USAGE)

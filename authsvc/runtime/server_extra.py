"""The extra `server`: what the services need beyond the client library's dependencies.

pip also installs both commands without it. They ask here, before they import anything of it.
"""

import os
import sys
from contextlib import suppress
from importlib.util import find_spec

MODULES = (
    "aiohttp",
    "aiosqlite",
    "alembic",
    "asyncpg",
    *(("backports.zstd",) if sys.version_info < (3, 14) else ()),  # the library has it from then on
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
    with suppress(ModuleNotFoundError):  # of a package that a module is in
        if all(map(find_spec, MODULES)):
            return
    with suppress(OSError):  # it may be closed
        os.write(2, f"{command}: not installed with the services: pip install 'deeptracer-auth[server]'\n".encode())
    sys.exit(_USAGE)

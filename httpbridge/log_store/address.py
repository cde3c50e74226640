"""Where the log store is: its address as configured, read for all who open it."""

import os
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from authsvc.runtime.database_url import DatabaseUrlError, PostgresAddress, parse_database_url
from httpbridge.log_store import StoreSetupError


def parse(url: str) -> Path | PostgresAddress:
    """Return the file of a `sqlite:` URL, or where the database of a PostgreSQL URL is.

    Raises StoreSetupError for anything else, without repeating it: it may hold a password.
    """
    try:
        return parse_database_url(url)
    except DatabaseUrlError as error:
        raise StoreSetupError(str(error)) from None


def existing_file(path: Path, mode: str) -> sa.URL:
    """Return what SQLAlchemy opens a SQLite file by that is there already, asynchronously; `mode` is `ro` or `rw`."""
    file = f"file:{quote(str(path.absolute()))}"
    query = {"mode": mode, "uri": "true"}
    if mode == "ro" and _is_unchanging(path):
        query["immutable"] = "1"  # otherwise SQLite would make files beside it, to share it with writers
    return sa.URL.create("sqlite+aiosqlite", database=file, query=query)


def _is_unchanging(path: Path) -> bool:
    """Whether nobody can write a SQLite file: it is on a read-only file system, and all that was committed is in it."""
    wal = path.with_name(f"{path.name}-wal")
    try:
        is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
        return is_read_only and not (wal.exists() and wal.stat().st_size)
    except OSError:
        return False

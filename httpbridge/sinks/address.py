"""Where the log store is: its address as configured, read for all who open it."""

from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from authsvc.client.database_url import DatabaseUrlError, PostgresAddress, parse_database_url
from httpbridge.sinks import StoreSetupError


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
    return sa.URL.create("sqlite+aiosqlite", database=file, query={"mode": mode, "uri": "true"})

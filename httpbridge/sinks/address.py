"""Where the log store is: its address as configured, read for all who open it."""

from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from httpbridge.sinks import StoreSetupError


def parse(url: str) -> Path | str:
    """Return the file of a `sqlite:` address, or the address of a PostgreSQL database as its driver takes it.

    Raises StoreSetupError for anything else, without repeating it: it may hold a password.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # the latter for a port
        raise StoreSetupError("the log store's address is not a URL such as sqlite:///logs.db") from None
    match parsed.get_backend_name():
        case "sqlite" if parsed.query:
            raise StoreSetupError("the log store's address has options after ?, which a sqlite: address cannot have")
        case "sqlite":
            return Path(parsed.database or ":memory:")
        case "postgresql":
            return parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        case other:
            raise StoreSetupError(f"the log store's address begins with sqlite: or postgresql:, not {other}:")


def existing_file(path: Path, mode: str) -> sa.URL:
    """Return what SQLAlchemy opens a SQLite file by that is there already, asynchronously; `mode` is `ro` or `rw`."""
    file = f"file:{quote(str(path.absolute()))}"
    return sa.URL.create("sqlite+aiosqlite", database=file, query={"mode": mode, "uri": "true"})

"""Databases with the key service's schema, made once: the migrations take longer than most tests."""

import asyncio
import secrets
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from threading import Thread

from authsvc.migrations import upgrade
from authsvc.storage.database import Database


def migrate(url: str) -> None:
    """Migrate a database, whether or not an event loop runs in this thread."""

    async def run() -> None:
        database = Database(url)
        await database.migrate(upgrade)
        await database.close()

    thread = Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()


def make_state_dir(state_dir: Path) -> None:
    """Make a state directory with a migrated database, where there is none yet."""
    if not state_dir.exists():
        state_dir.mkdir(0o700, parents=True)
        put_migrated(state_dir / "authsvc.db")


def put_migrated(file: Path) -> None:
    """Put a SQLite file with the schema there, with an epoch of its own, as if it had been migrated there."""
    content, epoch = _migrated_file()
    file.write_bytes(content.replace(epoch, secrets.token_hex(len(epoch) // 2).encode()))
    file.chmod(0o600)


@cache
def _migrated_file() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "migrated.db")
        migrate(f"sqlite:///{file}")
        with closing(sqlite3.connect(file)) as connection:
            (epoch,) = connection.execute("SELECT epoch FROM revision_counter").fetchone()
        return file.read_bytes(), epoch.encode()

"""A key service's database with any number of keys, written without the service. Used by `rig.services`."""

import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from benchmarks.rig.traffic import key

_CREATED = "2026-01-31 08:00:00.000000"


def store_keys(database: Path, count: int) -> None:
    """Add `count` projects with the keys `traffic.key(0)` and on to a migrated SQLite file: 15 s a million."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA synchronous=OFF")  # it is a scratch file
        connection.execute("PRAGMA cache_size=-500000")
        connection.executemany(
            "INSERT INTO projects (project_id, origins, create_time) VALUES (?, '[]', ?)",
            ((f"project-{number:07}", _CREATED) for number in range(count)),
        )
        rows = sorted(  # by digest, so that its index is written in order
            (sha256(key(number).encode()).digest(), f"key_{number:016x}", f"project-{number:07}")
            for number in range(count)
        )
        connection.executemany(
            "INSERT INTO keys (digest, key_id, project_id, create_revision, create_time) "
            f"VALUES (?, ?, ?, 0, '{_CREATED}')",
            rows,
        )
        connection.commit()

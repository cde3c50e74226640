"""What really lies in a log store, read past the product: the SQLite file itself."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.stored_chunks import SELECT, entries_of


def stored_logs(state_dir: Path, project_id: str | None = None) -> list[dict[str, Any]]:
    """Return the entries of `logs.db`, oldest first; of one project, or all."""
    with closing(sqlite3.connect(state_dir / "logs.db")) as connection:
        entries = entries_of(connection.execute(SELECT))
    return [entry for entry in entries if project_id in (None, entry["project_id"])]


def messages(state_dir: Path, project_id: str | None = None) -> list[str]:
    """Return the messages of those entries."""
    return [entry["message"] for entry in stored_logs(state_dir, project_id)]

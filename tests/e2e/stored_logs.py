"""What really lies in a log store, read past the product: the SQLite file itself."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def stored_logs(state_dir: Path, project_id: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of `logs.db`, oldest first; of one project, or all."""
    with closing(sqlite3.connect(state_dir / "logs.db")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(
            "SELECT * FROM logs WHERE ?1 IS NULL OR project_id = ?1 ORDER BY id", (project_id,)
        ).fetchall()
    return [dict(row) for row in rows]


def messages(state_dir: Path, project_id: str | None = None) -> list[str]:
    """Return the messages of those rows."""
    return [row["message"] for row in stored_logs(state_dir, project_id)]

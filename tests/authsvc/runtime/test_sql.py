"""What SQLite engines leave behind."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from authsvc.runtime.sql import sqlite_engine, sqlite_uri


async def test_no_thread_is_left_of_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """It would answer a loop that is closed by then, and print a traceback at the end of a command."""
    engine = sqlite_engine(sqlite_uri(tmp_path / "missing.db"))
    for _ in range(20):
        with pytest.raises(sa.exc.OperationalError):
            async with engine.connect():
                pass
        assert [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name] == []
    await engine.dispose()

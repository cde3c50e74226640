"""Real processes of both services, on free ports and in a state directory of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """Give a test its own state directory; end its processes and show what they wrote if it failed."""
    system = System(tmp_path)
    try:
        yield system
    finally:
        system.close()


@pytest.fixture(params=["one replica on SQLite", "two replicas on PostgreSQL"])
def replicas_database(request: pytest.FixtureRequest) -> str | None:
    """Give the database that two replicas share, or None for one replica with its own.

    A test takes it before `system`, so that the replicas end before their database does.
    """
    if "SQLite" in request.param:
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url

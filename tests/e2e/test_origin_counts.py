"""The bridge as a process: the origins that it saw are in the log store, at the latest when it has ended."""

import sqlite3
from contextlib import closing

from tests.e2e.processes import System
from tests.http_exchange import BODY, Connection, request
from tests.waiting import until

ADMITTED, BLOCKED = "https://admitted.example", "https://blocked.example"


async def test_origins_of_admitted_and_blocked_requests_are_in_the_store(system: System) -> None:
    """Within seconds while the bridge runs, and the last ones when it ends."""
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo", ADMITTED)

    async def send(origin: str) -> int:
        async with Connection(bridge.address) as connection:
            connection.send(request(key=key, origin=origin, body=BODY))
            return (await connection.answer()).status

    def stored() -> dict[str, tuple[int, int]]:
        with closing(sqlite3.connect(system.state_dir / "logs.db")) as connection:
            query = "SELECT origin, sum(allowed), sum(blocked) FROM origin_counts WHERE project_id = 'demo' GROUP BY 1"
            return {origin: (allowed, blocked) for origin, allowed, blocked in connection.execute(query)}

    assert [await send(origin) for origin in (ADMITTED, BLOCKED, ADMITTED)] == [200, 403, 200]
    await until("counts are flushed", lambda: stored() == {ADMITTED: (2, 0), BLOCKED: (0, 1)})
    assert await send(BLOCKED) == 403
    await bridge.stop()
    assert stored() == {ADMITTED: (2, 0), BLOCKED: (0, 2)}

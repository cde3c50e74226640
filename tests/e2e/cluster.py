"""One or two replicas of the key service, and bridges with log stores of their own. Used by the tests of revocation."""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from tests.e2e.administrator import Administrator, Keys
from tests.e2e.processes import Service, System
from tests.waiting import until


@dataclass(slots=True)
class Cluster:
    """Replicas that share a database, and what is known of their keys."""

    system: System
    keys: Keys
    replicas: list[Service]

    def __str__(self) -> str:
        return "one replica on SQLite" if len(self.replicas) == 1 else "two replicas on PostgreSQL"

    @property
    def first(self) -> Service:
        """The replica that the administrator calls."""
        return self.replicas[0]

    @property
    def last(self) -> Service:
        """The replica that bridges are attached to."""
        return self.replicas[-1]

    def token(self, role: str) -> str:
        """Return the token of a role."""
        return (self.system.state_dir / f"{role}-token").read_text().strip()

    def administrator(self, replica: Service | None = None) -> Administrator:
        """Return one who calls this replica, by default the first."""
        return Administrator((replica or self.first).address, self.token("admin"), self.keys)

    async def bridge(self, name: str, **variables: str) -> Service:
        """Start a bridge with a log store of its own, attached to the last replica; return when it has a lease."""
        bridge = await self.system.bridge(
            HTTPBRIDGE_STATE_DIR=str(self.system.directory / name),
            HTTPBRIDGE_KEY_SERVICE_TOKEN=self.token("bridge"),
            HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="100000000",
            **{"HTTPBRIDGE_KEY_SERVICE": self.last.address} | variables,
        )
        await until(f"{name} has a lease", lambda: "lease_granted" in bridge.stderr)
        return bridge

    async def bridges(self, count: int) -> list[Service]:
        """Start several bridges at once."""
        return await asyncio.gather(*(self.bridge(f"bridge-{number}") for number in range(count)))


async def start_cluster(system: System, postgres_url: str | None = None, **variables: str) -> Cluster:
    """Start two replicas on PostgreSQL if an empty database is given, else one on SQLite."""
    if postgres_url is None:
        return Cluster(system, Keys(), [await system.key_service(**variables)])
    system.variables |= {"AUTHSVC_DATABASE_URL": postgres_url}
    assert system.run("authsvc", "migrate").returncode == 0
    return Cluster(system, Keys(), [await system.key_service(**variables), await system.key_service(**variables)])


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at once; when one fails, cancel the others and raise what it failed with, alone."""
    tasks = [asyncio.create_task(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

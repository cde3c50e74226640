"""What bridges do while the key service is away, and what Revoke promises right after its end or restart."""

import asyncio
import random
import re
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

import asyncpg
import grpc
import psutil
import pytest

from tests.e2e.administrator import PATIENCE_SECONDS, Life
from tests.e2e.cluster import Cluster, start_cluster
from tests.e2e.processes import Service, System
from tests.e2e.traffic import Ring, Traffic
from tests.http_exchange import get
from tests.measured import Measured, distribution
from tests.waiting import until

BRIDGES = 3
VALIDATE = re.compile("method=/authsvc.v1.KeyService/(?:Batch|Stream)Validate")
WAIT_SECONDS = 0.2
LEASE_SECONDS = 6.0
"""Long enough for a busy machine to renew it in time, and to ask for a few keys before it ends."""
CACHED_KEYS = 10
RECOVERY_SECONDS_MAX = 60.0
"""Of a holder: gRPC's attempt to connect, its own back-off of two seconds, and a busy machine."""
REFUSAL_SECONDS_MAX = 3.0
"""For a 503 while the key service is away, on a busy machine: a connection is refused at once, and one in a second is
diagnosed."""


async def stop_process(service: Service) -> None:
    process = psutil.Process(service.pid)
    service.send(SIGSTOP)
    await until("it is stopped", lambda: process.status() == psutil.STATUS_STOPPED)


async def answered_by_all(traffic: Traffic, bridges: list[Service], key: str, status: int = 200) -> None:
    """Wait until every bridge has answered so a few more times."""
    before = {bridge.address: traffic.count(bridge.address, key, status) for bridge in bridges}
    await until(
        f"every bridge answers {status}",
        lambda: all(traffic.count(address, key, status) > count + 3 for address, count in before.items()),
    )


@pytest.mark.parametrize("end", [SIGTERM, SIGKILL], ids=["stopped", "killed"])
async def test_a_restart_costs_no_request_no_cached_verdict_and_no_lease(
    system: System, end: Signals, measured: Measured
) -> None:
    """Bridges serve from their caches, then resume without a reset; leases from before the restart still count."""
    cluster = await start_cluster(system)
    bridges = await cluster.bridges(BRIDGES)
    addresses = [bridge.address for bridge in bridges]
    traffic = Traffic()
    async with cluster.administrator() as administrator:
        kept, revoked = await administrator.issue("kept"), await administrator.issue("revoked")
        before = {it.name: it.holder_id for it in (await administrator.holders()).holders}
    assert [(await traffic.shoot(address, revoked.key)).status for address in addresses] == [200] * BRIDGES
    async with traffic.flowing(addresses, Ring(kept.key)):
        await answered_by_all(traffic, bridges, kept.key)
        cluster.first.send(end)
        await cluster.first.ended()
        await stop_process(bridges[0])
        await answered_by_all(traffic, bridges[1:], kept.key)
        cluster.replicas = [await system.key_service(AUTHSVC_LISTEN=cluster.first.address, AUTHSVC_LOG_LEVEL="debug")]
        async with cluster.administrator() as administrator:
            first = await administrator.revoke(revoked, wait_seconds=WAIT_SECONDS)
            stopped_id = next(holder for name, holder in before.items() if name.endswith(f":{bridges[0].pid}"))
            assert stopped_id in first.pending, "its lease is from before the restart"
            assert first.effective_by > first.returned_at
            bridges[0].send(SIGCONT)
            again = await administrator.revoke(revoked, wait_seconds=PATIENCE_SECONDS)
            assert again.response.already_revoked
            assert again.response.propagation.effective
            after = {it.name: it.holder_id for it in (await administrator.holders()).holders}
            assert after == before, "the same holders"
        await answered_by_all(traffic, bridges, kept.key)
        assert not VALIDATE.search(cluster.first.stderr), "every verdict was still in its cache"
    shots = [await traffic.shoot(address, revoked.key) for address in addresses]
    assert [shot.status for shot in shots] == [401] * BRIDGES
    assert len(VALIDATE.findall(cluster.first.stderr)) == BRIDGES
    assert traffic.statuses().keys() <= {"200", "401", "None"}, "nothing was a 503"
    cluster.keys.check(traffic.attempts)
    measured(f"after a restart all bridges had confirmed within {first.seconds + again.seconds:.2f} s")


# Each begins to revoke a key at the first replica and kills that replica at a moment of its own.


async def killed_before_the_commit(cluster: Cluster, life: Life, database: asyncpg.Connection, _: Service) -> None:
    async with cluster.administrator() as administrator, database.transaction():
        await database.execute("SELECT * FROM revision_counter FOR UPDATE")
        call = asyncio.create_task(administrator.revoke(life))

        async def waits() -> bool:
            return bool(await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await until("it waits for the counter's row", waits)
        await cluster.first.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def killed_while_it_waits(cluster: Cluster, life: Life, database: asyncpg.Connection, bridge: Service) -> None:
    query = "SELECT revision FROM revision_counter"
    before = await database.fetchval(query)
    await stop_process(bridge)
    async with cluster.administrator() as administrator:
        call = asyncio.create_task(administrator.revoke(life, wait_seconds=10))

        async def is_committed() -> bool:
            return bool(await database.fetchval(query) == before + 1)

        await until("it is committed", is_committed)
        await cluster.first.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def killed_whenever(cluster: Cluster, life: Life, _database: asyncpg.Connection, _: Service) -> None:
    async with cluster.administrator() as administrator:
        call = asyncio.create_task(administrator.revoke(life))
        await asyncio.sleep(random.uniform(0, 0.04))
        await cluster.first.kill()
        await asyncio.gather(call, return_exceptions=True)


async def test_a_revocation_whose_replica_is_killed_is_committed_or_not_and_a_retry_makes_it_hold(
    postgres_url: str, system: System, measured: Measured, is_long: bool
) -> None:
    """The bridges are attached to the other replica, which is where the caller tries again, with the key's id."""
    cluster = await start_cluster(system, postgres_url)
    bridges = await cluster.bridges(BRIDGES)
    addresses = [bridge.address for bridge in bridges]
    database = await asyncpg.connect(postgres_url)
    traffic = Traffic()
    committed = []
    kills = [killed_before_the_commit, killed_while_it_waits, killed_whenever, killed_whenever]
    async with cluster.administrator(cluster.last) as survivor:
        life = await survivor.issue("demo")
        ring = Ring(life.key, retired_max=2)
        async with traffic.flowing(addresses, ring):
            for kill in kills * (3 if is_long else 1):
                spare = asyncio.create_task(system.key_service())
                await answered_by_all(traffic, bridges, life.key)
                await kill(cluster, life, database, bridges[0])
                retry = await survivor.revoke(life, wait_seconds=WAIT_SECONDS)
                if kill is killed_while_it_waits:
                    assert retry.response.already_revoked
                    assert len(retry.pending) == 1
                    bridges[0].send(SIGCONT)
                if kill is killed_before_the_commit:
                    assert not retry.response.already_revoked
                again = await survivor.revoke(life, wait_seconds=PATIENCE_SECONDS)
                assert again.response.propagation.effective
                shots = [await traffic.shoot(address, life.key) for address in addresses]
                assert [shot.status for shot in shots] == [401] * BRIDGES
                committed.append(retry.response.already_revoked)
                life = retry.next or await survivor.replace("demo")
                ring.switch(life.key)
                cluster.replicas[0] = await spare
    await database.close()
    assert traffic.statuses().keys() <= {"200", "401", "None"}, "nothing was a 503"
    cluster.keys.check(traffic.attempts)
    measured(f"key service killed during Revoke {len(committed)} times: {sum(committed)} were committed")


async def test_an_outage_is_served_from_caches_to_the_end_of_the_lease_and_then_503_and_never_401(
    system: System, measured: Measured
) -> None:
    """Keys that are not cached are 503 at once; what is ready, and the logs, tell the lease's state."""
    cluster = await start_cluster(system, AUTHSVC_LEASE_SECONDS=str(LEASE_SECONDS), AUTHSVC_LEASE_MARGIN_SECONDS="0.5")
    bridges = await cluster.bridges(2)
    addresses = [bridge.address for bridge in bridges]
    traffic, uncached = Traffic(), Traffic()
    async with cluster.administrator() as administrator:
        keys = [(await administrator.issue(f"cached-{number}")).key for number in range(CACHED_KEYS)]
        unseen = [(await administrator.issue(f"unseen-{number}")).key for number in range(CACHED_KEYS)]
    ring = Ring(keys[0])
    ring.keys = keys
    async with traffic.flowing(addresses, ring, senders=4):
        for key in keys:
            await answered_by_all(traffic, bridges, key)
        await cluster.first.kill()
        killed_at = traffic.now()
        for key in unseen:
            shots = await asyncio.gather(*(uncached.shoot(address, key) for address in addresses))
            assert [shot.status for shot in shots] == [503, 503]
        assert await readiness(addresses) == [
            (200, {"status": "degraded", "reason": "the key service is away; cached verdicts serve"})
        ] * len(bridges)
        for key in keys:
            await answered_by_all(traffic, bridges, key, 503)
        assert await readiness(addresses) == [
            (503, {"status": "unavailable", "reason": "the key service is away, and no verdict is cached"})
        ] * len(bridges)
        away = len(traffic.attempts)
        cluster.replicas = [await system.key_service(AUTHSVC_LISTEN=cluster.first.address, AUTHSVC_LOG_LEVEL="debug")]
        restarted_at = traffic.now()
        for key in keys:
            await answered_by_all(traffic, bridges, key)
        recovery_seconds = traffic.now() - restarted_at
        assert recovery_seconds < RECOVERY_SECONDS_MAX

        async def ready() -> bool:
            return await readiness(addresses) == [(200, {"status": "ok"})] * len(bridges)

        await until("leases are back", ready, RECOVERY_SECONDS_MAX)
        asked = len(VALIDATE.findall(cluster.first.stderr))
        for key in keys:
            await answered_by_all(traffic, bridges, key)
        asked_since = len(VALIDATE.findall(cluster.first.stderr)) - asked
        assert asked_since <= CACHED_KEYS * len(bridges), "under a lease each key is asked about once"
    assert traffic.statuses().keys() <= {"200", "503", "None"}, "a fault is never a 401"
    during = [attempt for attempt in traffic.attempts[:away] if attempt.started_at > killed_at]
    for address in addresses:
        served = [it.started_at for it in during if it.bridge == address and it.status == 200]
        refused = [it.started_at for it in during if it.bridge == address and it.status == 503]
        assert max(served) < killed_at + LEASE_SECONDS
        assert min(refused) > killed_at + LEASE_SECONDS / 2, "the lease had been renewed not long ago"
    for bridge in bridges:
        for event in ("key_service_lost", "lease_lost", "key_service_reached"):
            assert event in bridge.stderr
        assert bridge.stderr.count("lease_granted") == 2
    refusals = [shot.ended_at - shot.started_at for shot in uncached.attempts]
    assert max(refusals) < REFUSAL_SECONDS_MAX
    measured(distribution("503 for a key that is not cached", refusals))
    requests = sum(it.started_at > restarted_at for it in traffic.attempts)
    assert 0 < asked < requests, "before there is a lease, no more often than there are requests"
    measured(f"all keys served again {recovery_seconds:.2f} s after the restart, by {asked} calls")


async def readiness(addresses: list[str]) -> list[tuple[int, object]]:
    answers = [await get(address, "/ready") for address in addresses]
    return [(answer.status, answer.json) for answer in answers]

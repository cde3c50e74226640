"""Everything behind a real PgBouncer in transaction mode, whose sessions are another client's a moment later."""

import asyncio
import json

import asyncpg

from tests.e2e.cluster import start_cluster
from tests.e2e.load import Load, body, check_stored
from tests.e2e.processes import System
from tests.http_exchange import post
from tests.httpbridge.dashboard.conftest import Browser
from tests.pgbouncer import SESSIONS, PgBouncer
from tests.stored_chunks import SELECT, entries_of
from tests.waiting import until


async def stored_messages(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [entry["message"] for entry in entries_of(await connection.fetch(SELECT))]
    finally:
        await connection.close()


async def test_keys_logs_and_dashboard_behind_a_pooler(pooled_url: str, postgres_url: str, system: System) -> None:
    """Two replicas, so that one learns from the database alone of what the other revokes."""
    system.variables["HTTPBRIDGE_LOG_STORE_URL"] = pooled_url
    cluster = await start_cluster(system, pooled_url)
    bridge = await cluster.bridge("bridge")
    dashboard = await system.dashboard()
    old = system.issue("demo")
    assert (await post(bridge.address, old, body("first", 3))).status == 200
    assert (await post(bridge.address, "dt_" + "0" * 24)).status == 401

    load = Load("load", old, batches_max=200)
    await load.run(bridge.address, reconnects=False)
    assert set(load.statuses) == {200}
    stored = await stored_messages(postgres_url)
    assert stored[:3] == ["first/0", "first/1", "first/2"]
    check_stored(stored[3:], load.sent)

    revoked = system.run("authsvc", "revoke", "demo", "--yes")
    assert "dead everywhere, 1 bridge confirmed" in revoked.stderr
    assert (await post(bridge.address, old)).status == 401
    assert (await post(bridge.address, revoked.stdout.strip(), body("last", 1))).status == 200
    assert "demo" in system.run("authsvc", "projects").stdout
    shown = system.run("httpbridge", "logs", "demo", "--json").stdout.splitlines()
    assert json.loads(shown[-1])["message"] == "last/0"
    async with Browser(f"http://{dashboard.address}") as browser:
        token = (system.state_dir / "dashboard-token").read_text().strip()
        assert (await browser.sign_in(token=token)).status == 303
        page = await browser.get("/projects/demo/logs")
        assert (page.status, "last/0" in page.text) == (200, True)
        origins = await browser.get("/projects/demo/settings/origins")
        assert origins.status == 200

    renewed = system.run("authsvc", "renew-epoch", "--yes")
    assert (renewed.returncode, renewed.stdout) == (0, "")
    connection = await asyncpg.connect(postgres_url)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert await connection.fetchval(sessions) == SESSIONS, "all came by way of the pooler"
    await connection.close()


async def test_several_workers_behind_a_pooler(pooled_url: str, system: System) -> None:
    system.variables |= {"AUTHSVC_DATABASE_URL": pooled_url, "HTTPBRIDGE_LOG_STORE_URL": pooled_url}
    assert system.run("authsvc", "migrate").returncode == 0
    await system.key_service(AUTHSVC_WORKERS="2")
    bridge = await system.bridge(HTTPBRIDGE_WORKERS="2")
    await until("both have a lease", lambda: bridge.stderr.count("lease_granted") == 2)
    old = system.issue("demo")
    for _ in range(8):  # connections are spread over the workers
        assert (await post(bridge.address, old)).status == 200
    assert "dead everywhere, 2 bridges confirmed" in system.run("authsvc", "revoke", "demo", "--yes").stderr
    for _ in range(8):
        assert (await post(bridge.address, old)).status == 401


async def test_a_pooler_that_is_restarted_costs_a_few_retries(
    pgbouncer: PgBouncer, pooled_url: str, postgres_url: str, system: System
) -> None:
    """What was answered with 200 is stored, once, and revocations hold as before."""
    system.variables["HTTPBRIDGE_LOG_STORE_URL"] = pooled_url
    cluster = await start_cluster(system, pooled_url)
    bridge = await cluster.bridge("bridge")
    key = system.issue("demo")
    load = Load("load", key, small=True)
    sending = asyncio.create_task(load.run(bridge.address, reconnects=True))
    await until("it stores", lambda: load.statuses[200] > 20)
    await asyncio.to_thread(pgbouncer.stop)
    await until("the store is away", lambda: load.statuses[503] > 0)
    await until("the key service knows", lambda: "database_lost" in cluster.first.stderr)
    await asyncio.to_thread(pgbouncer.start)
    enough = load.statuses[200] + 20
    await until("it stores again", lambda: load.statuses[200] > enough)
    await until("the key service is back", lambda: "database_back" in cluster.first.stderr)
    load.stop()
    await sending
    check_stored(await stored_messages(postgres_url), load.sent)

    async def is_revoked_everywhere() -> bool:
        done = await asyncio.to_thread(system.run, "authsvc", "revoke", "demo", "--yes")
        return "dead everywhere, 1 bridge confirmed" in done.stderr

    await until("a revocation holds at once", is_revoked_everywhere)
    assert (await post(bridge.address, key)).status == 401

"""What holds when a service is killed under load, or starts before the other one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.load import Load, Sent, check_stored
from tests.e2e.processes import System, free_port
from tests.e2e.stored_logs import messages
from tests.http_exchange import get, post
from tests.waiting import until


@asynccontextmanager
async def sending(load: Load, address: str) -> AsyncIterator[None]:
    """Send meanwhile; afterwards every answer that will come has come."""
    task = asyncio.create_task(load.run(address, reconnects=True))
    try:
        yield
    finally:
        load.stop()
        await task


# The number of answers after which the bridge is killed: in its first commits, and later.
KILLED_AFTER = (1, 60, 300)


async def test_after_kill_9_of_the_bridge_every_batch_with_a_200_is_stored_whole_and_once(system: System) -> None:
    await system.key_service()
    key = system.issue("demo")
    sent: dict[str, Sent] = {}
    for killed_after in KILLED_AFTER:
        bridge = await system.bridge()
        load = Load(f"round-{killed_after}", key)
        senders = asyncio.create_task(load.run(bridge.address, reconnects=False))
        await until("answers come", lambda load=load, count=killed_after: load.statuses[200] >= count)
        await bridge.kill()
        await senders
        assert load.statuses.keys() == {200, None}, "batches were on their way when it was killed"
        sent |= load.sent
    bridge = await system.bridge()
    assert (await post(bridge.address, key)).status == 200
    check_stored([message for message in messages(system.state_dir) if message != "hello"], sent)


@pytest.mark.parametrize("cache_ttl_seconds", ["0", pytest.param("0.1", marks=pytest.mark.long)])
async def test_kill_9_of_authsvc_never_makes_a_valid_key_invalid(system: System, cache_ttl_seconds: str) -> None:
    """While it is away answers are 200 or 503, and it is found again without a restart of the bridge."""
    key_service = await system.key_service()
    bridge = await system.bridge(HTTPBRIDGE_CACHE_TTL_SECONDS=cache_ttl_seconds)
    key = system.issue("demo")
    load = Load("batch", key, senders=4, small=True)
    async with sending(load, bridge.address):
        for _ in range(2):
            stored = load.statuses[200]
            await until("logs are stored", lambda stored=stored: load.statuses[200] > stored + 20)
            await key_service.kill()
            refused = load.statuses[503]
            await until("the key service is missed", lambda refused=refused: load.statuses[503] > refused + 20)
            key_service = await system.key_service(AUTHSVC_LISTEN=key_service.address)
            stored = load.statuses[200]
            await until("it is found again", lambda stored=stored: load.statuses[200] > stored + 20)
    assert load.statuses.keys() == {200, 503}
    check_stored(messages(system.state_dir), load.sent)
    away = [batch for batch, sent in load.sent.items() if sent.status == 503]
    assert not {message.rpartition("/")[0] for message in messages(system.state_dir)} & set(away)


async def test_cached_verdicts_outlive_the_key_service_and_nothing_else_does(system: System) -> None:
    key_service = await system.key_service()
    bridge = await system.bridge()
    cached, uncached = system.issue("cached"), system.issue("uncached")
    assert (await post(bridge.address, cached)).status == 200
    await key_service.kill()
    assert (await post(bridge.address, cached)).status == 200
    answer = await post(bridge.address, uncached)
    assert (answer.status, answer.json) == (503, {"error": "Key service unavailable"})
    assert answer.headers["retry-after"] == "1"

    async def degraded() -> bool:
        answer = await get(bridge.address, "/ready")
        assert answer.status == 200
        return bool(answer.json["status"] == "degraded")

    await until("/ready tells", degraded)


async def test_the_bridge_may_start_first_and_finds_the_token_that_did_not_exist(system: System) -> None:
    address = f"127.0.0.1:{free_port()}"
    bridge = await system.bridge(HTTPBRIDGE_KEY_SERVICE=address)
    assert not (system.state_dir / "bridge-token").exists()
    answer = await get(bridge.address, "/ready")
    assert answer.status == 503
    assert answer.json == {"status": "unavailable", "reason": "the key service has not been reached yet"}
    assert (await get(bridge.address, "/health")).status == 200
    answer = await post(bridge.address, "dt_" + "0" * 24)
    assert answer.status == 503, "whether the key is valid is not known"

    await system.key_service(AUTHSVC_LISTEN=address)

    async def ready() -> bool:
        return (await get(bridge.address, "/ready")).status == 200

    await until("the bridge is ready", ready)
    assert (await post(bridge.address, system.issue("demo"))).status == 200


async def test_a_wrong_token_is_a_503_that_the_log_explains_and_never_a_401(system: System) -> None:
    await system.key_service()
    key = system.issue("demo")
    bridge = await system.bridge(HTTPBRIDGE_KEY_SERVICE_TOKEN=32 * "x")
    assert (await post(bridge.address, key)).status == 503
    assert "refuses our token" in bridge.stderr

"""How long connections are kept: idle ones as configured, those with part of a head no longer than that is worth."""

import pytest

from authsvc.runtime.environment import ConfigurationError
from httpbridge.config import Config
from tests.clocks import RunningClock
from tests.http_exchange import Connection
from tests.httpbridge.conftest import BODY, Bridge, request, running_bridge

HEALTH = request("GET", "/health", key=None)


async def is_open(bridge: Bridge, client: Connection) -> bool:
    """Return whether the server has kept a connection, now that time has gone on."""
    for _ in range(3):
        await bridge.exchange(HEALTH)
    return not client.is_at_eof()


@pytest.mark.parametrize("is_used", [True, False], ids=["used", "fresh"])
@pytest.mark.parametrize("seconds", [5, 75, 620])
async def test_an_idle_connection_is_kept_as_long_as_is_configured(
    loop_clock: RunningClock, seconds: float, is_used: bool
) -> None:
    async with running_bridge(keepalive_seconds=seconds) as bridge:
        client = await bridge.connect()
        if is_used:
            client.send(request(body=BODY))
            await client.answer()
        else:
            await is_open(bridge, client)
        loop_clock.advance(seconds - 1)
        assert await is_open(bridge, client)
        loop_clock.advance(2)
        assert await client.rest() == b""


@pytest.mark.parametrize("is_used", [True, False], ids=["used", "fresh"])
@pytest.mark.parametrize(("keepalive_seconds", "head_seconds"), [(5, 5), (620, 75)])
async def test_a_head_that_has_begun_has_to_be_whole_in_75_seconds_whatever_is_configured(
    loop_clock: RunningClock, keepalive_seconds: float, head_seconds: float, is_used: bool
) -> None:
    async with running_bridge(keepalive_seconds=keepalive_seconds) as bridge:
        client = await bridge.connect()
        if is_used:
            client.send(request(body=BODY))
            await client.answer()
        for byte in HEALTH[:4]:
            client.send(bytes([byte]))
            assert await is_open(bridge, client)
            loop_clock.advance(head_seconds / 5)
        client.send(HEALTH[4:])
        assert (await client.answer()).status == 200
        loop_clock.advance(keepalive_seconds - 1)  # idle again, that is no head
        assert await is_open(bridge, client)
        for byte in HEALTH[:6]:
            client.send(bytes([byte]))
            await is_open(bridge, client)
            loop_clock.advance(head_seconds / 5)
        assert not await is_open(bridge, client)


async def test_a_head_that_begins_while_another_request_is_answered_has_no_longer(loop_clock: RunningClock) -> None:
    async with running_bridge(keepalive_seconds=620) as bridge:
        bridge.sink.gate.clear()
        client = await bridge.connect()
        client.send(request(body=BODY))
        await bridge.sink.writing.wait()
        client.send(HEALTH[:10])
        await is_open(bridge, client)
        bridge.sink.gate.set()
        assert (await client.answer()).status == 200
        await is_open(bridge, client)
        loop_clock.advance(76)
        assert not await is_open(bridge, client)


def test_the_default_is_what_nginx_has_and_absurd_values_are_refused() -> None:
    assert Config.from_environment({}).keepalive_seconds == 75
    assert Config.from_environment({"HTTPBRIDGE_KEEPALIVE_SECONDS": "620"}).keepalive_seconds == 620
    for text in ("0", "-1", "7201", "forever"):
        with pytest.raises(ConfigurationError, match="HTTPBRIDGE_KEEPALIVE_SECONDS"):
            Config.from_environment({"HTTPBRIDGE_KEEPALIVE_SECONDS": text})

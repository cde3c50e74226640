"""Large bodies beside small ones: who waits for whom, and what is held meanwhile."""

import asyncio
import gzip
import json

import pytest

from tests.httpbridge.conftest import BODY, KEY, SECOND_KEY, Bridge, request, running_bridge


def _large(message: bytes, more: bytes = b"") -> bytes:
    return b'{"logs": [%b]}' % b",".join([b'{"level": "info", "message": "%b"%b}' % (message, more)] * 1000)


LARGE = _large(b"x" * 2000)
ESCAPES = _large(rb"\ud83d\u000a" * 166)
LEAP_SECONDS = _large(b"x" * 1900, b', "timestamp": "2016-12-31T23:59:60.%bZ"' % (b"9" * 40))


class GatedTurns:
    """Stands before the turns of a bridge: counts those that were asked for, and holds them back from a number on."""

    def __init__(self, bridge: Bridge, *, free: int = 0, held: int = 1) -> None:
        """`is_held` is set once so many are held back."""
        self._turn = bridge.turns.turn
        self._free = free
        self._held = held
        self.asked = 0
        self.is_held = asyncio.Event()
        self.gate = asyncio.Event()
        bridge.turns.turn = self.turn  # type: ignore[method-assign, assignment]

    async def turn(self, project_id: str, loop_turns: int = 1, *, is_first: bool = False) -> None:
        self.asked += 1
        if self.asked == self._free + self._held:
            self.is_held.set()
        if self.asked > self._free:
            await self.gate.wait()
        await self._turn(project_id, loop_turns, is_first=is_first)


@pytest.mark.parametrize("is_gzip", [True, False])
async def test_a_small_request_waits_for_no_turn(bridge: Bridge, is_gzip: bool) -> None:
    """Nor does it matter whose they are: here even the next turn of a large body never comes."""
    turns = GatedTurns(bridge, free=10)
    large = await bridge.connect()
    large.send(request("POST", "/ingest/logs", "Content-Encoding: gzip", body=gzip.compress(LARGE)))
    await turns.is_held.wait()
    body, headers = (gzip.compress(BODY), ["Content-Encoding: gzip"]) if is_gzip else (BODY, [])
    for key in (KEY, SECOND_KEY):
        answer = await bridge.exchange(request("POST", "/ingest/logs", *headers, key=key, body=body))
        assert answer.status == 200
    assert [len(batch.entries) for batch in bridge.sink.batches] == [1, 1]
    turns.gate.set()
    assert (await large.answer()).status == 200
    assert len(bridge.sink.batches[2].entries) == 1000


@pytest.mark.parametrize("body", [LARGE, ESCAPES, LEAP_SECONDS], ids=["long texts", "escapes", "leap seconds"])
async def test_small_requests_are_answered_between_two_steps_of_large_ones(bridge: Bridge, body: bytes) -> None:
    """Of sixteen large bodies, each of which needs dozens of steps, none holds up a small request for many."""
    turns = GatedTurns(bridge, free=5, held=16)
    large = [await bridge.connect() for _ in range(16)]
    for client in large:
        client.send(request(body=body))
    await turns.is_held.wait()
    small = await bridge.connect()
    turns.gate.set()
    for _ in range(3):
        before = turns.asked
        small.send(request(key=SECOND_KEY, body=BODY))
        assert (await small.answer()).status == 200
        assert turns.asked - before < 40  # sixteen may ask while they come in, and a step passes every few turns
    assert [len(batch.entries) for batch in bridge.sink.batches] == [1, 1, 1]
    assert {(await client.answer()).status for client in large} == {200}


async def test_what_waits_for_its_turns_keeps_its_share_of_the_budget() -> None:
    """Else memory would have no bound: two MiB here of as many as there are connections."""
    async with running_bridge(body_budget_bytes=11 * 1024 * 1024) as bridge:
        turns = GatedTurns(bridge, held=5)
        waiting = [await bridge.connect() for _ in range(5)]
        for client in waiting:
            client.send(request(body=LARGE))
        await turns.is_held.wait()
        refused = await bridge.exchange(request(body=LARGE))
        assert (refused.status, json.loads(refused.body)) == (503, {"error": "Overloaded"})
        turns.gate.set()
        assert [(await client.answer()).status for client in waiting] == [200] * 5

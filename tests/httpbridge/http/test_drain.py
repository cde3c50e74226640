"""Stopping: clients are sent away, and every request that was read is answered."""

import asyncio

from tests.httpbridge.conftest import BODY, PROJECT_ID, Bridge, request, running_bridge


async def test_while_draining_ready_fails_and_answers_close_their_connections(bridge: Bridge) -> None:
    kept = await bridge.connect()
    kept.send(request(body=BODY))
    assert (await kept.answer()).headers.get("connection") is None
    bridge.server.drain()
    kept.send(request(body=BODY))
    answer = await kept.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await kept.rest() == b""
    answer = await bridge.exchange(request("GET", "/ready", key=None))
    assert (answer.status, answer.body) == (503, b'{"status": "unavailable", "reason": "draining"}')
    assert (await bridge.exchange(request("GET", "/health", key=None))).status == 200


async def test_shutdown_closes_idle_connections_and_those_with_half_a_head() -> None:
    async with running_bridge() as bridge:
        fresh, used, partial = [await bridge.connect() for _ in range(3)]
        partial.send(request(body=BODY))
        await partial.answer()
        partial.send(b"POST /ingest/logs HTTP/1.1\r\nHost:")
        used.send(request(body=BODY))
        await used.answer()  # by now the half head was read too
        await bridge.server.shutdown(timeout_seconds=30)
        assert [await client.rest() for client in (fresh, used, partial)] == [b"", b"", b""]


async def test_shutdown_waits_for_what_is_being_stored_and_answers_it() -> None:
    async with running_bridge() as bridge:
        bridge.sink.gate.clear()
        client = await bridge.connect()
        client.send(request(body=BODY))
        await bridge.sink.writing.wait()
        stopping = asyncio.create_task(bridge.server.shutdown(timeout_seconds=30))
        await asyncio.sleep(0)
        assert not stopping.done()
        bridge.sink.gate.set()
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await stopping


async def test_shutdown_answers_a_request_whose_body_is_still_coming() -> None:
    async with running_bridge() as bridge:
        client = await bridge.connect()
        client.send(request("POST", "/ingest/logs", f"Content-Length: {len(BODY)}") + BODY[:5])
        await bridge.validator.is_asked.wait()
        stopping = asyncio.create_task(bridge.server.shutdown(timeout_seconds=30))
        client.send(BODY[5:])
        assert (await client.answer()).status == 200
        await stopping
        assert [batch.project_id for batch in bridge.sink.batches] == [PROJECT_ID]


async def test_shutdown_answers_every_request_that_was_pipelined() -> None:
    async with running_bridge() as bridge:
        bridge.sink.gate.clear()
        client = await bridge.connect()
        client.send(request(body=BODY) * 10)
        await bridge.sink.writing.wait()
        stopping = asyncio.create_task(bridge.server.shutdown(timeout_seconds=30))
        bridge.sink.gate.set()
        answers = [await client.answer() for _ in range(10)]
        assert [answer.status for answer in answers] == [200] * 10
        assert [answer.headers.get("connection") for answer in answers] == [None] * 9 + ["close"]
        assert await client.rest() == b""
        await stopping


async def test_shutdown_ends_in_time_whatever_is_stuck() -> None:
    async with running_bridge() as bridge:
        bridge.sink.gate.clear()
        clients = [await bridge.connect() for _ in range(2)]
        for client in clients:
            client.send(request(body=BODY))
        await bridge.sink.writing.wait()
        clients[0].writer.transport.abort()
        await bridge.server.shutdown(timeout_seconds=0.05)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set()  # nothing is left running
        assert bridge.sink.batches == []

"""Idempotency keys on real stores: what is sent again with its key is stored once."""

import asyncio
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
import sqlalchemy as sa

from httpbridge.errors import IdempotencyConflictError, StoreUnavailableError
from httpbridge.log_store.encoding import chunks_of, encode
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import SqlSink, open_sink
from tests.contract.conftest import written_store
from tests.contract.test_log_sink import Clock, batch, reading_engine, sink_on


def key(name: str, body: str = "body") -> IdempotencyKey:
    return IdempotencyKey(name, sha256(body.encode()).digest())


async def messages(url: str, project_id: str = "demo") -> list[str]:
    store = ReadStore(url)
    try:
        selection = LogFilter(project_id=project_id, since=batch().received_at - timedelta(days=1))
        return sorted([log.message async for log in read(store, selection)])
    finally:
        await store.close()


async def test_what_is_sent_again_is_stored_once(written_url: str) -> None:
    async with sink_on(written_url) as sink:
        for _ in range(3):
            await sink.write(batch("a", "b"), key("one"))
        await sink.write(batch("a", "b"), key("two"))
        await sink.write(batch("c"))
        await sink.write(batch("a", project_id="other"), key("one", "another project's"))
    async with sink_on(written_url) as sink:  # another process
        await sink.write(batch("a", "b"), key("one"))
    assert await messages(written_url) == ["a", "a", "b", "b", "c"]
    assert await messages(written_url, "other") == ["a"]


async def test_copies_at_once_by_several_bridges_are_stored_once(written_url: str) -> None:
    sinks = [await open_sink(written_store(written_url), monotonic=Clock()) for _ in range(3)]

    async def send(sink: SqlSink, number: int) -> None:
        await sink.write(batch(str(number)), key(f"key {number}", str(number)))

    try:
        # In different orders, and with others among them.
        await asyncio.gather(
            *(
                send(sink, (number * step) % 50)
                for sink, step in zip(sinks, (1, 3, 7), strict=True)
                for number in range(50)
            ),
            *(sink.write(batch("other")) for sink in sinks),
        )
    finally:
        for sink in sinks:
            await sink.close()
    assert await messages(written_url) == sorted([*map(str, range(50)), "other", "other", "other"])


async def test_another_body_with_a_key_is_refused_and_harms_nobody(written_url: str) -> None:
    async with sink_on(written_url) as sink:
        await sink.write(batch("first"), key("one"))
        writes: list[Any] = [
            sink.write(batch("before")),
            sink.write(batch("second"), key("one", "another")),
            sink.write(batch("first"), key("one")),
            sink.write(batch("third"), key("new")),
            sink.write(batch("fourth"), key("new", "another")),
            sink.write(batch("after")),
        ]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    conflict, done = IdempotencyConflictError, type(None)
    assert kinds == [done, conflict, done, done, conflict, done]
    assert await messages(written_url) == ["after", "before", "first", "third"]


def test_chunks_with_a_key_are_before_all_others() -> None:
    """Also before one that was full: the places of those that are refused go by it."""
    full = encode(batch(*map(str, range(3000))))
    keys = [key("one"), key("two")]
    chunks = chunks_of([full, encode(batch("a"), keys[0]), full, encode(batch("b"), keys[1])])
    assert [chunk.idempotency for chunk in chunks] == [*keys, None, None]


async def test_a_bridge_that_stopped_in_the_middle_of_a_commit_holds_up_only_its_own_keys(postgres_url: str) -> None:
    """What has none goes on; who sends a batch of its again is told to come back, and soon can."""
    engine = reading_engine(postgres_url)
    async with sink_on(postgres_url) as sink, engine.connect() as stopped:
        await stopped.execute(
            sa.text("INSERT INTO idempotency_keys (project_id, key, body) VALUES ('demo', 'one', 'x')")
        )
        with pytest.raises(StoreUnavailableError):
            await sink.write(batch("a"), key("one"))
        await sink.write(batch("b"))
        await stopped.rollback()
        await sink.write(batch("a"), key("one"))
    assert await messages(postgres_url) == ["a", "b"]
    await engine.dispose()


async def test_a_key_is_remembered_for_a_day(written_url: str) -> None:
    async def age(seconds: int) -> None:
        engine = reading_engine(written_url)
        async with engine.begin() as connection:
            await connection.execute(sa.text(f"UPDATE idempotency_keys SET stored_at = stored_at - {seconds}"))
        await engine.dispose()

    async with sink_on(written_url) as sink:
        await sink.write(batch("a"), key("one"))
        await age(24 * 3600 - 60)
        await sink.write(batch("a"), key("one"))
        await age(120)
        await sink.write(batch("b"), key("one", "another"))
        with pytest.raises(IdempotencyConflictError):
            await sink.write(batch("a"), key("one"))
    assert await messages(written_url) == ["a", "b"]


async def test_a_batch_of_an_unknown_outcome_may_be_sent_again(written_url: str) -> None:
    """Its caller went away before the answer; it was stored all the same."""
    async with sink_on(written_url) as sink:
        writing: asyncio.Future[None] = asyncio.ensure_future(sink.write(batch("a"), key("one")))
        await asyncio.sleep(0)
        writing.cancel()
        await sink.write(batch("a"), key("one"))
    assert await messages(written_url) == ["a"]

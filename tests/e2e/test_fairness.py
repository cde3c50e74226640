"""One key beside another that sends the dearest bodies it may: a few kB of gzip that inflate to 5 MB, over and over."""

import asyncio
import gzip
import json
from collections import Counter
from itertools import groupby

import pytest

from tests.e2e.processes import System
from tests.http_exchange import Connection
from tests.http_exchange import request as sent
from tests.measured import Measured
from tests.waiting import until

CONNECTIONS = 16
LARGE_BYTES = 5_000_000
BYTES_PER_MINUTE = 10 * LARGE_BYTES
PAUSE_SECONDS = 0.1
"""After a refusal: it is to be a few large bodies that make others wait, and no flood of requests."""

BETWEEN_MAX = CONNECTIONS // 2
"""Such a body is compressed to next to nothing and stored in a millisecond or two, so that several are stored while the
other's client has its turn."""

LARGE = {
    "one long text": ["x" * (LARGE_BYTES - 100_000)],
    "a thousand lines": ["x" * (LARGE_BYTES // 1000 - 100)] * 1000,
}
SMALL = ["x" * 900]


def _batch(messages: list[str]) -> bytes:
    return json.dumps({"logs": [{"level": "info", "message": message} for message in messages]}).encode()


@pytest.mark.parametrize(
    ("store", "name"),
    [
        ("SQLite", "one long text"),
        ("SQLite", "a thousand lines"),
        ("PostgreSQL", "a thousand lines"),
        ("two workers on SQLite", "one long text"),
    ],
)
async def test_one_key_does_not_make_another_wait_for_all_of_its_large_bodies(
    request: pytest.FixtureRequest, measured: Measured, store: str, name: str
) -> None:
    """Of the one's bodies very few are stored between two small requests of the other, which all succeed.

    So it is by counts, whatever the machine does meanwhile: sixteen connections that are served in the order in which
    they come have sixteen bodies stored there. Once its bytes are used up, the one gets a 429.
    """
    variables = {"HTTPBRIDGE_BYTES_PER_MINUTE": str(BYTES_PER_MINUTE)}
    if store == "PostgreSQL":
        variables["HTTPBRIDGE_LOG_STORE_URL"] = request.getfixturevalue("postgres_url")
    if store == "two workers on SQLite":
        variables["HTTPBRIDGE_WORKERS"] = "2"
    system: System = request.getfixturevalue("system")  # so that it ends before its database does
    await system.key_service()
    keys = {sender: system.issue(sender) for sender in ("greedy", "other")}
    bridge = await system.bridge(**variables)
    answered: list[tuple[str, int]] = []
    """Whose, and how, in the order in which the answers came."""

    async def send(sender: str, data: bytes) -> None:
        async with Connection(bridge.address) as connection:
            while True:
                connection.send(data)
                answer = await connection.answer()
                answered.append((sender, answer.status))
                if answer.status != 200:
                    assert int(answer.headers["retry-after"]) >= 1
                    await asyncio.sleep(PAUSE_SECONDS)

    small = asyncio.create_task(send("other", sent(key=keys["other"], body=_batch(SMALL))))
    await until("the other is served", lambda: answered.count(("other", 200)) > 1)
    large = sent("Content-Encoding: gzip", key=keys["greedy"], body=gzip.compress(_batch(LARGE[name])))
    senders = [small, *(asyncio.create_task(send("greedy", large)) for _ in range(CONNECTIONS))]
    try:
        await until("the one has used up its bytes", lambda: answered.count(("greedy", 429)) >= CONNECTIONS)
    finally:
        for task in senders:
            task.cancel()
        outcomes = await asyncio.gather(*senders, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
    counts = {f"{sender} {status}": count for (sender, status), count in sorted(Counter(answered).items())}
    stored = [sender for sender, status in answered if status == 200]
    between = [len(list(run)) for sender, run in groupby(stored) if sender == "greedy"]
    measured(f"{name} in {store}: {counts}; large ones between two small ones: {between}")
    assert {status for sender, status in answered if sender == "other"} == {200}
    assert stored.count("greedy") >= BYTES_PER_MINUTE / LARGE_BYTES / 4
    assert max(between) <= BETWEEN_MAX

"""One key beside another that sends the dearest bodies it may: a few kB of gzip that inflate to 5 MB, over and over."""

import asyncio
import gzip
import json
from collections import Counter
from itertools import groupby

import pytest

from tests.e2e.http_exchange import Connection, request
from tests.e2e.processes import System, until
from tests.measured import Measured

ATTACKERS = 16
BYTES_PER_MINUTE = 100 * 1024 * 1024
"""Twenty bodies, and what is under way when the last of them is counted."""

BODIES = {
    "one long text": [{"level": "info", "message": "x" * 5_000_000}],
    "a thousand lines": [{"level": "info", "message": "x" * 4_900}] * 1000,
}
SMALL = json.dumps({"logs": [{"level": "info", "message": "x" * 900}]}).encode()


def inflating(name: str, key: str) -> bytes:
    body = gzip.compress(json.dumps({"logs": BODIES[name]}).encode())
    assert len(body) < 10_000
    return request("Content-Encoding: gzip", key=key, body=body)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("store", ["SQLite", "two workers on SQLite", "PostgreSQL"])
async def test_one_key_does_not_make_another_wait_for_its_large_bodies(
    system: System, store: str, name: str, request: pytest.FixtureRequest, measured: Measured
) -> None:
    """Of the one's bodies a few at the most are answered between two small requests of the other, which all succeed.

    So it is by counts, whatever the machine does meanwhile: sixteen connections that were served in the order in which
    they came would have sixteen bodies answered there.
    """
    variables = {"HTTPBRIDGE_BYTES_PER_MINUTE": str(BYTES_PER_MINUTE)}
    if store == "PostgreSQL":
        variables["HTTPBRIDGE_LOG_STORE_URL"] = request.getfixturevalue("postgres_url")
    if store == "two workers on SQLite":
        variables["HTTPBRIDGE_WORKERS"] = "2"
    await system.key_service()
    greedy, other = system.issue("greedy"), system.issue("other")
    bridge = await system.bridge(**variables)
    await until("the key service is reached", lambda: "lease_granted" in bridge.stderr)
    answered: list[tuple[str, int]] = []
    """Whose, and how, in the order in which answers came."""

    async def send(sender: str, data: bytes) -> None:
        async with Connection(bridge.address) as connection:
            while True:
                connection.send(data)
                answer = await connection.answer()
                answered.append((sender, answer.status))
                if sender == "greedy" and answer.status != 200:
                    assert int(answer.headers["retry-after"]) >= 1
                    await asyncio.sleep(0.1)  # as polite as that: it is to be one key's large bodies, no flood

    large = inflating(name, greedy)
    senders = [asyncio.create_task(send("greedy", large)) for _ in range(ATTACKERS)]
    small = asyncio.create_task(send("other", globals()["request"](key=other, body=SMALL)))
    try:
        await until("the one has used up its bytes", lambda: answered.count(("greedy", 429)) >= ATTACKERS)
    finally:
        for task in (*senders, small):
            task.cancel()
        await asyncio.gather(*senders, small, return_exceptions=True)
    counts = {f"{sender} {status}": count for (sender, status), count in sorted(Counter(answered).items())}
    stored = [sender for sender, status in answered if status == 200]
    between = [len(list(run)) for sender, run in groupby(stored) if sender == "greedy"]
    print(store, name, counts, between)
    assert {status for sender, status in answered if sender == "other"} == {200}

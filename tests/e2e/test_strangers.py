"""What those that reach the key service's port without a token can do to those that have one: make them wait a bit."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from authsvc.runtime.environment import Address
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from tests.authsvc.api.raw_http2 import flood
from tests.e2e.administrator import PATIENCE_SECONDS
from tests.e2e.cluster import start_cluster
from tests.e2e.processes import System
from tests.e2e.traffic import Ring, Traffic
from tests.http_exchange import post
from tests.waiting import until

CONNECTIONS = 44
CALLS = 199
ADDRESSES = 4
ROUNDS = 3
METHODS = ("KeyService/Validate", "KeyService/Revoke", "OperationsService/ListHolders", "KeyService/Watch")


@dataclass(frozen=True, slots=True)
class Target:
    """A key service of another process."""

    address: Address


@asynccontextmanager
async def attacked(target: Target, lost: Counter[int]) -> AsyncIterator[None]:
    """Keep connections full of answers that nobody takes, and of calls behind them; count how often each is lost."""

    async def attack(number: int) -> None:
        while True:
            try:
                async with flood(target, f"127.0.0.{2 + number % ADDRESSES}") as stranger:
                    stranger.fill()
                    for count in range(CALLS):
                        stranger.call(f"/authsvc.v1.{METHODS[count % len(METHODS)]}")
                    while not stranger.is_closed:
                        stranger.call("/authsvc.v1.KeyService/Validate")  # finds out
                        await asyncio.sleep(0.05)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            lost[number] += 1

    tasks = [asyncio.create_task(attack(number)) for number in range(CONNECTIONS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes


async def test_callers_that_never_read_their_refusals_cost_admins_and_bridges_no_call(system: System) -> None:
    """The connections are closed on which they are made, as often as they come back."""
    cluster = await start_cluster(system)
    bridge = await cluster.bridge("bridge")
    traffic = Traffic()
    lost: Counter[int] = Counter()
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        ring = Ring(life.key)
        target = Target(Address.parse(cluster.first.address))
        async with traffic.flowing([bridge.address], ring), attacked(target, lost):
            while len(lost) < CONNECTIONS or min(lost.values()) < ROUNDS:
                revocation = await administrator.revoke(life, wait_seconds=PATIENCE_SECONDS)
                assert revocation.response.propagation.effective
                assert len(revocation.confirmed) == 1
                assert revocation.next is not None
                life = revocation.next

                async def is_taken(key: str = life.key) -> bool:
                    status = (await post(bridge.address, key)).status
                    assert status in (200, 503)  # the bridge waits 2 s for an answer, on a busy machine in vain
                    return status == 200

                await until("the bridge takes the next key", is_taken)
                ring.switch(life.key)
    cluster.keys.check(traffic.attempts)
    assert traffic.statuses().keys() <= {"200", "401", "None"}, "nothing was a 503"
    assert "connections_closed" in cluster.first.stderr


async def test_guesses_of_tokens_are_slow_and_logged_and_keep_nobody_waiting_who_knows_one(system: System) -> None:
    """From the same address."""
    cluster = await start_cluster(system)
    outcomes: Counter[str] = Counter()

    async def guess(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        metadata = (("authorization", f"Bearer {number:032}"),)
        while True:
            async with grpc.aio.insecure_channel(cluster.first.address, options) as channel:
                keys = pb_grpc.KeyServiceStub(channel)
                try:
                    while True:
                        await keys.Validate(pb.ValidateRequest(), metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    outcomes[error.code().name] += 1

    guessing = [asyncio.create_task(guess(number)) for number in range(20)]
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        while loop.time() - started < 3 or outcomes["UNAUTHENTICATED"] < 100:
            revocation = await administrator.revoke(life)
            assert revocation.next is not None
            life = revocation.next
    seconds = loop.time() - started
    for task in guessing:
        task.cancel()
    await asyncio.gather(*guessing, return_exceptions=True)
    assert outcomes.keys() <= {"UNAUTHENTICATED", "UNAVAILABLE"}
    assert outcomes["UNAUTHENTICATED"] <= 50 * (seconds + 1) + 20
    lines = [line for line in cluster.first.stderr.splitlines() if "calls_refused" in line]
    assert 1 <= len(lines) <= seconds + 2
    assert all("address=127.0.0.1" in line for line in lines)

"""What Revoke promises while a bridge is stopped, dead or cut off: it says whose lease it waits for, and by when.

Each fault has a few victims, each with a project of its own, so that the waits overlap; one more
bridge is left in peace.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from signal import SIGCONT, SIGSTOP
from typing import TypeAlias

import psutil
import pytest

from tests.e2e.administrator import Administrator, Life, Revocation
from tests.e2e.cluster import Cluster, start_cluster, together
from tests.e2e.processes import Service, System
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.traffic import Attempt, Ring, Traffic
from tests.http_exchange import get
from tests.measured import Measured, distribution
from tests.waiting import until

ROUNDS, ROUNDS_LONG = 2, 3
"""Of each victim: a fault that lasts until the old key is dead, and one that does not."""
VICTIMS, VICTIMS_LONG = 2, 4
"""Of each fault. The second begins with the second round, so that both see each end of a fault, too."""
LEASE_SECONDS = 8.0
"""Longer than a busy machine keeps a Revoke from its look at the leases: the one that it waits for is to be live."""
MARGIN_SECONDS = 0.5
WAIT_SECONDS = 0.2
ANSWER_SECONDS_MAX = 60.0
"""Beyond what it was told to wait. That it does not wait for the lease's end is seen by what it says of it."""
PAUSE_SECONDS = 0.2
"""Of each sender: two dozen of them take what they ask, and no whole core."""
SHOT_SECONDS = 0.1
SHOTS_TOO_LATE = 3
LEASES = {"AUTHSVC_LEASE_SECONDS": str(LEASE_SECONDS), "AUTHSVC_LEASE_MARGIN_SECONDS": str(MARGIN_SECONDS)}


@dataclass(slots=True)
class Victim:
    """A bridge that a fault befalls, and the proxy between it and the key service."""

    name: str
    cluster: Cluster
    proxy: TcpProxy
    service: Service
    rounds: int = 0


Fault: TypeAlias = Callable[[Victim], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def stopped(victim: Victim) -> AsyncIterator[None]:
    """Stop the process as a debugger, or a machine that is suspended, does; it goes on where it was."""
    process = psutil.Process(victim.service.pid)
    victim.service.send(SIGSTOP)
    try:
        await until("it is stopped", lambda: process.status() == psutil.STATUS_STOPPED)
        yield
    finally:
        victim.service.send(SIGCONT)


@asynccontextmanager
async def killed(victim: Victim) -> AsyncIterator[None]:
    """Kill the process, and start another in its place."""
    address = victim.service.address
    await victim.service.kill()
    yield
    victim.service = await attached(victim.cluster, victim.name, victim.proxy, address)


@asynccontextmanager
async def cut_off(victim: Victim) -> AsyncIterator[None]:
    """Deliver nothing between bridge and key service; then late, or on new connections only."""
    victim.proxy.cut()
    yield
    if victim.rounds % 3:
        victim.proxy.heal()
    else:
        await victim.proxy.reset()


FAULTS = {"stopped": stopped, "killed": killed, "cut off": cut_off}


async def attached(cluster: Cluster, name: str, proxy: TcpProxy, address: str = "127.0.0.1:0") -> Service:
    return await cluster.bridge(name, HTTPBRIDGE_KEY_SERVICE=proxy.address, HTTPBRIDGE_LISTEN=address)


@dataclass(slots=True)
class Trial:
    """What all rounds of a test share, and what they found."""

    administrator: Administrator
    traffic: Traffic
    bystander: Service
    bystander_id: str
    confirmed: int = 0
    """Revocations that the bystander confirmed within the wait; on a busy machine not all."""
    seconds: list[float] = field(default_factory=list)
    accepted_meanwhile: int = 0
    """Requests with the old key that a victim accepted though Revoke had returned: before effective_by."""


async def play(trial: Trial, victim: Victim, life: Life, fault: Fault, rounds: int) -> None:
    """Revoke the victim's key so many times, each time under the fault."""
    ring = Ring(life.key, retired_max=2)
    async with trial.traffic.flowing(
        [victim.service.address, trial.bystander.address], ring, senders=1, pause_seconds=PAUSE_SECONDS
    ):
        for _ in range(rounds):
            victim.rounds += 1
            holder_id = await caught_up(trial, victim, life)
            life = await revoke_under(trial, victim, fault, life, holder_id)
            ring.switch(life.key)


async def caught_up(trial: Trial, victim: Victim, life: Life) -> str:
    """Wait until the victim has a lease and the key in its cache; return its holder id."""
    address = victim.service.address
    holder = None
    while holder is None:
        answered = trial.traffic.count(address, life.key, 200)
        await until(
            f"{victim.name} takes the new key",
            lambda answered=answered: trial.traffic.count(address, life.key, 200) > answered + 1,
        )
        holder = await trial.administrator.holder(victim.service.pid)
    return holder.holder_id


async def revoke_under(trial: Trial, victim: Victim, fault: Fault, life: Life, holder_id: str) -> Life:
    """Revoke while the fault lasts, and go on asking the victim with the old key until it must be dead."""
    shots: set[asyncio.Task[Attempt]] = set()
    try:
        async with fault(victim):
            revocation = await trial.administrator.revoke(life, wait_seconds=WAIT_SECONDS)
            trial.seconds.append(revocation.seconds)
            assert WAIT_SECONDS <= revocation.seconds < WAIT_SECONDS + ANSWER_SECONDS_MAX
            assert not revocation.response.propagation.effective
            assert holder_id in revocation.pending
            assert revocation.effective_by < revocation.returned_at + LEASE_SECONDS + MARGIN_SECONDS
            trial.confirmed += trial.bystander_id in revocation.confirmed
            await until_confirmed(trial, life, revocation)
            bystander = await trial.traffic.shoot(trial.bystander.address, life.key)
            assert bystander.status == 401, "it has confirmed, so its part of the promise holds already"
            # The fault is over when the old key must be dead, or before; then the traffic goes on with that key.
            soon = revocation.returned_at + random.uniform(0, LEASE_SECONDS / 2)
            until_dead = victim.rounds % 2 == 1
            await shoot_until(trial, victim, life, revocation.effective_by if until_dead else soon, shots)
        answered = await asyncio.gather(*shots)
    finally:
        for shot in shots:
            shot.cancel()
        await asyncio.gather(*shots, return_exceptions=True)
    too_late = [shot for shot in answered if shot.started_at > revocation.effective_by]
    assert not [shot for shot in too_late if shot.status == 200]
    assert len(too_late) >= SHOTS_TOO_LATE or not until_dead
    trial.accepted_meanwhile += sum(shot.status == 200 for shot in answered)
    assert revocation.next is not None
    return revocation.next


async def until_confirmed(trial: Trial, life: Life, revocation: Revocation) -> None:
    """Return once the bystander has confirmed; asked again, Revoke commits nothing, and says who has by now."""

    async def has_confirmed() -> bool:
        asked_again = await trial.administrator.revoke(life, wait_seconds=0)
        return trial.bystander_id in asked_again.confirmed

    if trial.bystander_id not in revocation.confirmed:
        await until("the bridge that is left in peace confirms", has_confirmed)


async def shoot_until(
    trial: Trial, victim: Victim, life: Life, unix_seconds: float, shots: set[asyncio.Task[Attempt]]
) -> None:
    """Send with the old key, on new connections and without waiting for answers, until some began after the instant."""
    too_late = 0
    while too_late < SHOTS_TOO_LATE:
        too_late += trial.traffic.now() > unix_seconds
        shots.add(asyncio.create_task(trial.traffic.shoot(victim.service.address, life.key)))
        await asyncio.sleep(SHOT_SECONDS)  # the rate: a stopped bridge answers nothing that could be waited for


@pytest.mark.timeout(300)  # up to thirteen bridges start, and a dozen once more: each takes a second of a core
async def test_a_bridge_that_cannot_confirm_is_named_and_accepts_nothing_after_effective_by(
    replicas_database: str | None, system: System, measured: Measured, is_long: bool
) -> None:
    """Stopped, killed or cut off: the call returns in time; with two replicas, the bridge is attached to the other."""
    victims, rounds = (VICTIMS_LONG, ROUNDS_LONG) if is_long else (VICTIMS, ROUNDS)
    cluster = await start_cluster(system, replicas_database, **LEASES)
    async with AsyncExitStack() as stack:
        bystander = await cluster.bridge("bystander")
        administrator = await stack.enter_async_context(cluster.administrator())
        [bystander_holder] = (await administrator.holders()).holders
        trials = {fault: Trial(administrator, Traffic(), bystander, bystander_holder.holder_id) for fault in FAULTS}

        async def suffer(fault: str, number: int) -> None:
            name = f"{fault.replace(' ', '-')}-{number}"
            proxy = await stack.enter_async_context(TcpProxy(cluster.last.address))
            async with two_at_once:
                victim = Victim(name, cluster, proxy, await attached(cluster, name, proxy), number % 2)
            life = await administrator.issue(name)
            await all_attached.wait()
            await play(trials[fault], victim, life, FAULTS[fault], rounds)

        two_at_once = asyncio.Semaphore(2)  # a start has a deadline, and takes a core
        all_attached = asyncio.Barrier(len(FAULTS) * victims)
        await together([suffer(fault, number) for fault in FAULTS for number in range(victims)])
        for fault, trial in trials.items():
            cluster.keys.check(trial.traffic.attempts)
            assert len(trial.seconds) == victims * rounds
            measured(distribution(f"Revoke, {cluster}, a bridge {fault}, wait {WAIT_SECONDS} s", trial.seconds))
            measured(
                f"answers meanwhile: {trial.traffic.statuses()}; accepted after the return, before effective_by: "
                f"{trial.accepted_meanwhile}; confirmed by the bridge left in peace: {trial.confirmed}"
            )
        assert trials["cut off"].accepted_meanwhile > 0, "a lease is what its bridge goes on with"
        sweep = trials["cut off"].traffic
        dead = [await sweep.shoot(bystander.address, life.key) for life in cluster.keys.revoked()]
        assert [shot.status for shot in dead] == [401] * len(FAULTS) * victims * rounds
        assert (await get(bystander.address, "/ready")).json == {"status": "ok"}

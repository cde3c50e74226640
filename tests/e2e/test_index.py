"""Replicas that answer from memory, as processes: what is revoked at one is refused at the other."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from signal import SIGCONT, SIGSTOP
from typing import Any

import grpc
import pytest

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from tests.e2e.administrator import Administrator, Life
from tests.e2e.cluster import Cluster, start_cluster
from tests.e2e.processes import Service, System
from tests.waiting import until

LEASE_SECONDS = 2


class Validating:
    """Asks one replica about keys, as bridges do."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._keys: Any = pb_grpc.KeyServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def verdict(self, life: Life) -> "pb.Verdict.ValueType":
        request = pb.ValidateRequest(api_key=life.key)
        answer = await self._keys.Validate(request, metadata=self._metadata, timeout=20, wait_for_ready=True)
        verdict: pb.Verdict.ValueType = answer.verdict
        return verdict

    async def make_busy(self, life: Life) -> None:
        request = pb.BatchValidateRequest(requests=[pb.ValidateRequest(api_key=life.key)] * 250)
        await self._keys.BatchValidate(request, metadata=self._metadata, timeout=20)


@pytest.fixture
async def cluster(system: System, postgres_url: str) -> Cluster:
    """Start two replicas on one database."""
    return await start_cluster(
        system, postgres_url, AUTHSVC_LEASE_SECONDS=str(LEASE_SECONDS), AUTHSVC_LEASE_MARGIN_SECONDS="0"
    )


@pytest.fixture
async def validating(cluster: Cluster) -> AsyncIterator[Validating]:
    """Ask the last replica, which the administrator does not call."""
    async with grpc.aio.insecure_channel(cluster.last.address) as channel:
        yield Validating(channel, cluster.token("bridge"))


async def warm(administrator: Administrator, replica: Service, validating: Validating, life: Life) -> str:
    """Keep a replica busy until it answers for a key from memory; return the id of its index."""

    async def holds() -> bool:
        await validating.make_busy(life)
        return await administrator.holder(replica.pid) is not None

    await until("the replica's index holds a lease", holds)
    await validating.make_busy(life)
    holder = await administrator.holder(replica.pid)
    assert holder is not None
    return holder.holder_id


async def test_a_key_revoked_at_one_replica_is_refused_at_the_other_when_the_call_returns(
    cluster: Cluster, validating: Validating
) -> None:
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        await warm(administrator, cluster.last, validating, life)
        for _ in range(20):
            assert await validating.verdict(life) == pb.VERDICT_ALLOWED
            revocation = await administrator.revoke(life)
            assert revocation.response.propagation.effective
            assert await validating.verdict(life) == pb.VERDICT_INVALID_KEY
            assert revocation.next is not None
            life = revocation.next


async def test_a_replica_that_was_stopped_answers_nothing_from_memory_when_it_goes_on(
    cluster: Cluster, validating: Validating
) -> None:
    """Revoke waits for its lease, names it while it does, and the first answer afterwards is right."""
    async with AsyncExitStack() as stack:
        administrator = await stack.enter_async_context(cluster.administrator())
        life = await administrator.issue("demo")
        index = await warm(administrator, cluster.last, validating, life)
        assert await validating.verdict(life) == pb.VERDICT_ALLOWED
        cluster.last.send(SIGSTOP)
        stack.callback(cluster.last.send, SIGCONT)
        revocation = await administrator.revoke(life, wait_seconds=0)
        assert revocation.pending == {index}
        assert revocation.effective_by <= time.time() + LEASE_SECONDS
        again = await administrator.revoke(life, wait_seconds=20)
        assert again.response.propagation.effective
        cluster.last.send(SIGCONT)
        assert await validating.verdict(life) == pb.VERDICT_INVALID_KEY


async def test_revocations_wait_seconds_for_a_replica_that_was_killed(cluster: Cluster, validating: Validating) -> None:
    """No longer than its short lease and the margin, though bridges' leases last a minute."""
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        index = await warm(administrator, cluster.last, validating, life)
        await cluster.last.kill()
        revocation = await administrator.revoke(life, wait_seconds=0)
        assert revocation.pending <= {index}
        assert revocation.effective_by <= time.time() + LEASE_SECONDS
        assert (await administrator.revoke(life, wait_seconds=20)).response.propagation.effective

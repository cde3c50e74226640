"""SIGTERM: what was read is answered, what was answered is stored, and clients are sent away first."""

import asyncio
import signal
import sqlite3
from contextlib import closing

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from tests.e2e.administrator import PATIENCE_SECONDS
from tests.e2e.cluster import start_cluster
from tests.e2e.load import Load, check_stored, closes
from tests.e2e.processes import System
from tests.e2e.stored_logs import messages
from tests.http_exchange import BODY, Connection, get, post, request
from tests.waiting import until

DRAIN_SECONDS = 10
"""How long the key service waits for calls under way."""


async def test_sigterm_under_load_answers_what_was_read_and_keeps_what_it_answered(system: System) -> None:
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    load = Load("batch", key)
    senders = asyncio.create_task(load.run(bridge.address, reconnects=True))
    await until("answers come", lambda: load.statuses[200] >= 100)
    async with Connection(bridge.address) as held, Connection(bridge.address) as idle:
        idle.send(request(method="GET", target="/health"))
        assert not closes(await idle.answer())
        # 100 Continue says that this request was read: its answer is due whatever comes.
        held.send(request("Expect: 100-continue", f"Content-Length: {len(BODY)}", key=key))
        assert (await held.answer()).status == 100

        bridge.send(signal.SIGTERM)
        await until("answers close their connections", lambda: load.closing[True] > 0)
        answer = await get(bridge.address, "/ready")
        assert (answer.status, answer.json["reason"], closes(answer)) == (503, "draining", True)
        assert await idle.is_closed_by_server()
        assert bridge.is_running
        held.send(BODY)
        answer = await held.answer()
        assert (answer.status, closes(answer)) == (200, True)

    assert await bridge.ended() == 0
    load.stop()
    await senders
    assert load.statuses.keys() <= {200, None}
    assert not [batch for batch, sent in load.sent.items() if sent.is_torn_answer]
    stored = messages(system.state_dir)
    assert stored.count("hello") == 1
    check_stored([message for message in stored if message != "hello"], load.sent)
    assert "cancelled" not in bridge.stderr


async def test_sigterm_of_authsvc_turns_health_first_and_answers_the_call_under_way(system: System) -> None:
    """The call is held by a lock on the database, and a later call on the same connection shows that it was read."""
    key_service = await system.key_service()
    key = system.issue("demo")
    metadata = (("authorization", f"Bearer {(system.state_dir / 'admin-token').read_text().strip()}"),)
    async with grpc.aio.insecure_channel(key_service.address) as channel:
        stub = pb_grpc.KeyServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="authsvc.v1.KeyService"), timeout=20
        )
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with closing(sqlite3.connect(system.state_dir / "authsvc.db", isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            issue = stub.Issue(pb.IssueRequest(project_id="held"), metadata=metadata, timeout=20)
            answer = await stub.Validate(pb.ValidateRequest(api_key=key), metadata=metadata, timeout=10)
            assert answer.verdict == pb.VERDICT_ALLOWED
            key_service.send(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
            assert key_service.is_running
            lock.execute("ROLLBACK")
        issued = await issue
    assert await key_service.ended() == 0
    await system.key_service()
    assert system.run("authsvc", "validate", stdin=issued.api_key).returncode == 0


async def test_sigterm_of_authsvc_under_load_refuses_no_valid_key(system: System) -> None:
    """Answers are the verdict or that there is none: gRPC cancels what it read and had not handed over yet."""
    key_service = await system.key_service()
    key = system.issue("demo")
    metadata = (("authorization", f"Bearer {(system.state_dir / 'bridge-token').read_text().strip()}"),)
    verdicts: list[int] = []
    faults: list[grpc.StatusCode] = []
    async with grpc.aio.insecure_channel(key_service.address) as channel:
        stub = pb_grpc.KeyServiceStub(channel)

        async def call_until_refused() -> None:
            while not faults:
                try:
                    answer = await stub.Validate(pb.ValidateRequest(api_key=key), metadata=metadata, timeout=10)
                except grpc.aio.AioRpcError as error:
                    faults.append(error.code())
                else:
                    verdicts.append(answer.verdict)

        callers = asyncio.gather(*(call_until_refused() for _ in range(8)))
        await until("calls are answered", lambda: len(verdicts) >= 50)
        key_service.send(signal.SIGTERM)
        await callers
    assert set(verdicts) == {pb.VERDICT_ALLOWED}
    assert set(faults) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert await key_service.ended() == 0


async def test_sigterm_of_authsvc_waits_for_no_holder_that_is_frozen(system: System) -> None:
    key_service = await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    async with Connection(bridge.address) as client:
        client.send(request(key=key, body=BODY))
        assert (await client.answer()).status == 200
    bridge.send(signal.SIGSTOP)
    key_service.send(signal.SIGTERM)
    async with asyncio.timeout(DRAIN_SECONDS / 2):
        assert await key_service.ended() == 0
    bridge.send(signal.SIGCONT)


async def test_nobody_waits_for_a_bridge_that_was_stopped(system: System) -> None:
    """It releases its lease: neither a revocation at once nor one after its end waits for its lease."""
    cluster = await start_cluster(system)
    stopped, other = await cluster.bridges(2)
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        assert {(await post(bridge.address, life.key)).status for bridge in (stopped, other)} == {200}
        stopped.send(signal.SIGTERM)
        for is_at_once in (True, False):
            revoked = await administrator.revoke(life, wait_seconds=PATIENCE_SECONDS)
            assert revoked.response.propagation.effective
            assert not revoked.pending
            assert revoked.next is not None
            life = revoked.next
            if is_at_once:
                assert await stopped.ended() == 0
        assert len(revoked.confirmed) == 1
    listed = system.run("authsvc", "holders").stdout
    assert f":{other.pid} " in listed
    assert f":{stopped.pid} " not in listed

"""Several workers of a service share its port: they all serve, and one that ends takes nothing acknowledged along."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from tests.e2e.certificates import Authority
from tests.e2e.cluster import start_cluster
from tests.e2e.load import Load, check_stored
from tests.e2e.processes import Service, System, free_port
from tests.e2e.stored_logs import messages
from tests.e2e.traffic import Ring, Traffic
from tests.e2e.workers import have_answered, kill, workers
from tests.http_exchange import BODY, Connection, get, post, request
from tests.measured import Measured, distribution
from tests.waiting import until

SENDERS = 12
"""Connections, of which the system gives each worker some: all to one of two in one of 2,048 cases."""

REVOCATIONS, REVOCATIONS_LONG = 10, 60

TWO = {"AUTHSVC_WORKERS": "2", "HTTPBRIDGE_WORKERS": "2"}
KILLED, KILLED_LONG = ("1", "2"), ("1", "2", "1")
WRITER_KILLS, WRITER_KILLS_LONG = 2, 3


def close(system: System) -> None:
    """End its processes, and see that nothing of any goes on."""
    children = [child for service in system.running() for child in psutil.Process(service.pid).children()]
    system.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.fixture
def system(system: System) -> Iterator[System]:
    """Have two workers of each service."""
    system.variables |= TWO
    yield system
    close(system)


@dataclass(frozen=True, slots=True)
class Shared:
    """Both services, for tests that change nothing about their processes and have a project of their own."""

    system: System
    key_service: Service
    bridge: Service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    """Start both services, once."""
    system = System(tmp_path_factory.mktemp("shared"))
    system.variables |= TWO
    try:
        key_service = await system.key_service(AUTHSVC_LOG_LEVEL="debug")
        yield Shared(system, key_service, await system.bridge(HTTPBRIDGE_LOG_LEVEL="debug"))
    finally:
        close(system)


@asynccontextmanager
async def sending(load: Load, bridge: Service) -> AsyncIterator[None]:
    """Send meanwhile, and begin when logs are stored; afterwards every answer that will come has come."""
    task = asyncio.create_task(load.run(bridge.address, reconnects=True))
    try:
        await more(load, 200)
        yield
    finally:
        load.stop()
        await task


async def more(load: Load, status: int, count: int = 100) -> None:
    """Return when so many more have been answered so."""
    before = load.statuses[status]
    await until(f"{count} more are answered with {status}", lambda: load.statuses[status] >= before + count)


async def test_every_worker_of_the_bridge_answers_and_one_process_writes(shared: Shared) -> None:
    system, bridge = shared.system, shared.bridge
    assert sorted(workers(bridge)) == ["1", "2", "log-writer"]
    load = Load("batch", system.issue("demo"), senders=SENDERS)
    async with sending(load, bridge):
        await until("each worker answers", lambda: have_answered(bridge, "status=200"))
        writers = {
            name
            for name, process in workers(bridge).items()
            if any(file.path.endswith("/logs.db") for file in process.open_files())
        }
    assert writers == {"log-writer"}
    assert load.statuses.keys() == {200}
    check_stored(messages(system.state_dir), load.sent)
    assert bridge.stdout.count("\n") == 1


async def test_threads_of_the_key_service_take_turns_and_those_of_bridges_need_not(
    shared: Shared, system: System
) -> None:
    key_service, bridge, alone = shared.key_service, shared.bridge, await system.key_service(AUTHSVC_WORKERS="1")
    serving = [alone.pid, *(process.pid for process in workers(key_service).values())]
    assert {os.sched_getscheduler(pid) for pid in serving} == {os.SCHED_BATCH}
    others = [bridge.pid, *(process.pid for process in workers(bridge).values())]
    assert {os.sched_getscheduler(pid) for pid in others} == {os.SCHED_OTHER}


async def test_every_worker_of_the_key_service_answers_and_is_healthy(shared: Shared) -> None:
    system, key_service = shared.system, shared.key_service
    assert sorted(workers(key_service)) == ["1", "2"]
    key = system.issue("healthy")
    metadata = (("authorization", f"Bearer {(system.state_dir / 'bridge-token').read_text().strip()}"),)

    async def each_has_answered() -> bool:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        async with grpc.aio.insecure_channel(key_service.address, options) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            answer = await pb_grpc.KeyServiceStub(channel).Validate(
                pb.ValidateRequest(api_key=key), metadata=metadata, timeout=20
            )
            assert answer.verdict == pb.VERDICT_ALLOWED
        return have_answered(key_service, "Validate")

    await until("each worker answers", each_has_answered)


async def test_each_worker_of_a_bridge_is_a_holder_of_its_own(shared: Shared) -> None:
    system, bridge = shared.system, shared.bridge

    async def are_listed() -> bool:
        listed = system.run("authsvc", "holders").stdout
        pids = [process.pid for name, process in workers(bridge).items() if name != "log-writer"]
        return all(f"{socket.gethostname()}:{pid} " in listed for pid in pids)

    await until("both are listed", are_listed)


async def test_a_worker_that_is_killed_is_replaced_and_no_acknowledged_log_is_lost(
    system: System, is_long: bool
) -> None:
    key_service = await system.key_service()
    bridge = await system.bridge()
    load = Load("batch", system.issue("demo"), senders=4)
    async with sending(load, bridge):
        for name in KILLED_LONG if is_long else KILLED:
            survivors = {worker: process.pid for worker, process in workers(bridge).items() if worker != name}
            await kill(bridge, name)
            assert survivors.items() <= {w: process.pid for w, process in workers(bridge).items()}.items()
            await kill(key_service, name)
            await more(load, 200)
    assert load.statuses.keys() <= {200, 503, None}
    assert load.statuses[None] <= 3 * 4 * 2, "only what was on its way to the one that was killed, or came as it ended"
    check_stored(messages(system.state_dir), load.sent)


async def test_a_log_writer_that_is_killed_costs_503s_and_no_acknowledged_log(system: System, is_long: bool) -> None:
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    load = Load("batch", key, senders=4)
    async with sending(load, bridge):
        for _ in range(WRITER_KILLS_LONG if is_long else WRITER_KILLS):
            await kill(bridge, "log-writer")
            await more(load, 200)
    assert load.statuses[503] > 0
    assert load.statuses.keys() == {200, 503}
    check_stored(messages(system.state_dir), load.sent)
    assert (await get(bridge.address, "/ready")).status == 200


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, "its parent"),
        pytest.param(signal.SIGINT, "its parent", marks=pytest.mark.long),
        (signal.SIGTERM, "each of its processes"),
    ],
)
async def test_a_signal_drains_all_workers(system: System, number: signal.Signals, to: str) -> None:
    """What each has read is answered, and stored. Some supervisors send the signal to every process of a service."""
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    load = Load("batch", key, senders=4)
    async with sending(load, bridge), AsyncExitStack() as stack:
        held = [await stack.enter_async_context(Connection(bridge.address)) for _ in range(SENDERS)]
        for connection in held:
            # 100 Continue says that this request was read: its answer is due whatever comes.
            connection.send(request("Expect: 100-continue", f"Content-Length: {len(BODY)}", key=key))
            assert (await connection.answer()).status == 100
        pids = [process.pid for process in workers(bridge).values()] if to.startswith("each") else []
        for pid in (bridge.pid, *pids):
            os.kill(pid, number)
        await until("answers close their connections", lambda: load.closing[True] > 0)
        for connection in held:
            connection.send(BODY)
            assert (await connection.answer()).status == 200
        assert await bridge.ended() == 0
    assert load.statuses.keys() <= {200, None}
    assert not [batch for batch, sent in load.sent.items() if sent.is_torn_answer]
    stored = messages(system.state_dir)
    assert stored.count("hello") == SENDERS
    check_stored([message for message in stored if message != "hello"], load.sent)


@pytest.mark.parametrize("name", ["authsvc", "httpbridge"])
async def test_a_signal_to_each_process_while_they_start_is_no_failure(system: System, name: str) -> None:
    service = system.launch(name)
    await until("the first of them is there", lambda: bool(workers(service)))
    for process in (*workers(service).values(), psutil.Process(service.pid)):
        process.terminate()
    assert await service.ended() == 0
    assert service.stdout == ""


async def test_a_signal_drains_the_key_service(system: System) -> None:
    key_service = await system.key_service()
    system.issue("demo")
    children = list(workers(key_service).values())
    await key_service.stop()
    assert not any(child.is_running() for child in children)
    assert "unexpected" not in key_service.stderr


@pytest.mark.parametrize("name", ["authsvc", "httpbridge"])
async def test_a_parent_that_is_killed_takes_its_workers_along_and_frees_the_port(system: System, name: str) -> None:
    start = system.key_service if name == "authsvc" else system.bridge
    service = await start()
    children = list(workers(service).values())
    await service.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    again = await start(**{f"{name.upper()}_LISTEN": service.address})
    assert again.address == service.address


@pytest.mark.parametrize("name", ["authsvc", "httpbridge"])
async def test_a_port_that_other_workers_have_is_2_and_one_line(shared: Shared, name: str) -> None:
    """They would share it with these, too: the system lets all processes of one user."""
    service = shared.key_service if name == "authsvc" else shared.bridge
    done = shared.system.run(name, "serve", **{f"{name.upper()}_LISTEN": service.address})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}: {name.upper()}_LISTEN: cannot listen on {service.address}: Address already in use\n"


@pytest.mark.parametrize(
    ("name", "variables", "status", "line"),
    [
        ("authsvc", {"AUTHSVC_TLS_CERT": "none.pem", "AUTHSVC_TLS_KEY": "none.key"}, 2, "AUTHSVC_TLS_CERT"),
        ("authsvc", {"AUTHSVC_LISTEN": "0.0.0.0:0"}, 2, "AUTHSVC_LISTEN"),
        ("authsvc", {"AUTHSVC_DATABASE_URL": "postgresql://127.0.0.1:1/none"}, 3, "database"),
        ("authsvc", {"AUTHSVC_WORKERS": "0"}, 2, "AUTHSVC_WORKERS"),
        ("httpbridge", {"HTTPBRIDGE_TLS_CERT": "none.pem", "HTTPBRIDGE_TLS_KEY": "none.key"}, 2, "HTTPBRIDGE_TLS"),
        ("httpbridge", {"HTTPBRIDGE_LOG_STORE_URL": "sqlite:////dev/null/logs.db"}, 2, "HTTPBRIDGE_LOG_STORE_URL"),
        ("httpbridge", {"HTTPBRIDGE_LOG_STORE_URL": "mysql://127.0.0.1/logs"}, 2, "HTTPBRIDGE_LOG_STORE_URL"),
        ("httpbridge", {"HTTPBRIDGE_STATE_DIR": "/dev/null/state"}, 2, "HTTPBRIDGE_STATE_DIR"),
        ("httpbridge", {"HTTPBRIDGE_LOG_STORE_URL": "sqlite:nothing"}, 2, "HTTPBRIDGE_LOG_STORE_URL"),
        ("httpbridge", {"HTTPBRIDGE_WORKERS": "65"}, 2, "HTTPBRIDGE_WORKERS"),
    ],
)
def test_what_cannot_start_as_configured_says_so_as_one_process_does(
    system: System, name: str, variables: dict[str, str], status: int, line: str
) -> None:
    done = system.run(name, "serve", **variables)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{name}: ")
    assert line in done.stderr


def test_a_worker_is_not_for_people_to_start(system: System) -> None:
    for command in (["authsvc", "worker", "x"], ["httpbridge", "worker", "x"], ["httpbridge", "log-writer", "p", "x"]):
        done = system.run(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Invalid value for 'SPEC'" in done.stderr
        assert "worker" not in system.run(command[0], "--help").stdout


async def test_workers_serve_tls(system: System) -> None:
    servers, clients = Authority(system.directory, "servers"), Authority(system.directory, "clients")
    certificate, key = servers.certificate("localhost", "127.0.0.1")
    mine, my_key = clients.certificate("tests")
    system.variables |= {
        "AUTHSVC_TLS_CERT": certificate, "AUTHSVC_TLS_KEY": key, "AUTHSVC_TLS_CLIENT_CA": clients.ca,
        "AUTHSVC_CA": servers.ca, "AUTHSVC_CLIENT_CERT": mine, "AUTHSVC_CLIENT_KEY": my_key,
        "HTTPBRIDGE_KEY_SERVICE_CA": servers.ca, "HTTPBRIDGE_KEY_SERVICE_CERT": mine,
        "HTTPBRIDGE_KEY_SERVICE_CERT_KEY": my_key, "HTTPBRIDGE_TLS_CERT": certificate, "HTTPBRIDGE_TLS_KEY": key,
    }  # fmt: skip
    await system.key_service(AUTHSVC_LISTEN=f"localhost:{free_port()}")
    bridge = await system.bridge(HTTPBRIDGE_LISTEN=f"localhost:{free_port()}", HTTPBRIDGE_LOG_LEVEL="debug")
    assert bridge.is_tls
    api_key = system.run("authsvc", "issue", "demo").stdout.strip()

    async def each_has_answered() -> bool:
        assert (await post(bridge.address, api_key, tls=servers.client_context())).status == 200
        return have_answered(bridge, "status=200")

    await until("each worker answers", each_has_answered)


async def test_workers_store_in_postgresql_each_for_itself(postgres_url: str, system: System) -> None:
    await system.key_service()
    bridge = await system.bridge(HTTPBRIDGE_LOG_STORE_URL=postgres_url)
    assert sorted(workers(bridge)) == ["1", "2"]
    load = Load("batch", system.issue("demo"), senders=4)
    async with sending(load, bridge):
        await kill(bridge, "1")
        await more(load, 200)
    shown = system.run("httpbridge", "logs", "demo", "--since", "1h", HTTPBRIDGE_LOG_STORE_URL=postgres_url).stdout
    stored = [word for line in shown.splitlines() for word in line.split() if word.startswith("batch-")]
    check_stored(stored, load.sent)


async def test_no_200_begins_after_revoke_returned(system: System, measured: Measured, is_long: bool) -> None:
    """The administrator's call reaches one worker of the key service, and the bridge's workers watch any of them."""
    cluster = await start_cluster(system)
    bridge = await cluster.bridge("bridge")
    traffic = Traffic()
    seconds = []
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        ring = Ring(life.key)
        async with traffic.flowing([bridge.address], ring, senders=SENDERS):
            for _ in range(REVOCATIONS_LONG if is_long else REVOCATIONS):
                key = life.key
                await until(
                    "the key is taken from the caches",
                    lambda key=key: traffic.count(bridge.address, key, 200) > 2 * SENDERS,
                )
                revocation = await administrator.revoke(life)
                assert revocation.response.propagation.effective
                assert len(revocation.confirmed) == 2
                shots = await asyncio.gather(*(traffic.shoot(bridge.address, key) for _ in range(4)))
                assert [shot.status for shot in shots] == [401] * len(shots)
                assert revocation.next is not None
                life = revocation.next
                ring.switch(life.key)
                seconds.append(revocation.seconds)
    cluster.keys.check(traffic.attempts)
    assert traffic.statuses().keys() <= {"200", "401", "None"}, "nothing was a 503"
    measured(distribution("Revoke, two workers of each service under load", seconds))

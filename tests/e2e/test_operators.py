"""What operators see of a revocation: by when it holds, who holds leases, and the audit trail as it grows."""

import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from typing import Any

import grpc
import psutil
import pytest

from tests.e2e.cluster import start_cluster
from tests.e2e.processes import BIN, System
from tests.e2e.tcp_proxy import TcpProxy
from tests.waiting import DEADLINE_SECONDS, until

TIME = r"\d\d:\d\d:\d\dZ"


async def test_revoke_says_who_confirmed_or_who_did_not_and_holders_shows_the_same(system: System) -> None:
    cluster = await start_cluster(system)
    bridge = await cluster.bridge("bridge")
    system.issue("demo")
    confirmed = system.run("authsvc", "revoke", "demo", "--yes")
    assert re.search(r"\ndead everywhere, 1 bridge confirmed in \d+ ms\n", confirmed.stderr)
    header, row = system.run("authsvc", "holders").stdout.splitlines()
    assert re.fullmatch(r"NAME +HOLDER +BEHIND +LEASE UNTIL +LAST RENEWED", header)
    name = rf"\S+:{bridge.pid}"
    assert re.fullmatch(rf"{name} +[0-9a-f]{{32}} +0 +\S+ {TIME} \(\d+ s left\) +\S+ {TIME}", row)

    with closing(sqlite3.connect(system.state_dir / "authsvc.db")) as connection, connection:
        connection.execute(
            "INSERT INTO leases (holder_id, name, epoch, acknowledged_revision, expire_time, renew_time, is_released)"
            " SELECT 'h' || char(27) || '[2J', 'n' || char(27), '', 0, renew_time, renew_time, 0 FROM leases"
        )
    assert "\x1b" not in system.run("authsvc", "holders").stdout

    process = psutil.Process(bridge.pid)
    bridge.send(signal.SIGSTOP)
    await until("it is stopped", lambda: process.status() == psutil.STATUS_STOPPED)
    pending = system.run("authsvc", "revoke", "demo", "--yes", "--wait", "0.2")
    bridge.send(signal.SIGCONT)
    assert re.search(rf"\ndead at {TIME} at the latest: {name} has not answered since {TIME}\n", pending.stderr)


@pytest.mark.parametrize("command", ["revoke demo --yes", "origins demo https://a.example", "issue other"])
async def test_a_change_whose_key_service_is_killed_in_mid_call_may_have_been_made_and_can_be_asked_for_again(
    system: System, command: str
) -> None:
    """A load balancer between them accepts connections all the while, and closes them, as one that expects TLS does."""
    cluster = await start_cluster(system)
    bridge = await cluster.bridge("bridge")
    system.issue("demo")
    key_id = system.run("authsvc", "keys", "demo").stdout.split()[3]
    bridge.send(signal.SIGSTOP)
    async with TcpProxy(cluster.first.address) as proxy, cluster.administrator() as administrator:
        before = await administrator.revision()
        arguments = [*command.split(), "--wait", "20"]
        caller = system.launch("authsvc", *arguments, AUTHSVC_ADDRESS=proxy.address)

        async def is_committed() -> bool:
            return await administrator.revision() > before

        await until("it is committed", is_committed)
        await cluster.first.kill()
        assert await caller.ended() == 3
    again = command.replace("--yes", f"--key-id {key_id}")
    assert caller.stderr.endswith(f"; the change may have been made; ask again: authsvc {again}\n")
    assert caller.stderr.count("\n") == 1
    assert "TLS" not in caller.stderr
    bridge.send(signal.SIGCONT)
    await system.key_service(AUTHSVC_LISTEN=cluster.first.address)
    yes = ["--yes"] if "--yes" in command else []
    retry = system.run("authsvc", *again.split(), *yes)
    made = {"revoke": f"{key_id} was revoked already", "origins": "nothing was changed", "issue": "has an active key"}
    assert made[command.split(maxsplit=1)[0]] in retry.stderr


@pytest.mark.parametrize("command", ["revoke demo --yes", "origins demo https://a.example", "issue other"])
async def test_a_change_that_is_interrupted_may_have_been_made_and_can_be_asked_for_again(
    system: System, command: str
) -> None:
    """While it waits for a bridge that does not answer, the API key is made already, and is lost."""
    cluster = await start_cluster(system)
    bridge = await cluster.bridge("bridge")
    system.issue("demo")
    key_id = system.run("authsvc", "keys", "demo").stdout.split()[3]
    bridge.send(signal.SIGSTOP)
    async with cluster.administrator() as administrator:
        before = await administrator.revision()
        caller = system.launch("authsvc", *command.split(), "--wait", "20")

        async def is_committed() -> bool:
            return await administrator.revision() > before

        await until("it is committed", is_committed)
    caller.send(signal.SIGINT)
    assert await caller.ended() == 3
    bridge.send(signal.SIGCONT)
    again = command.replace("--yes", f"--key-id {key_id}")
    said = f"authsvc: interrupted; the change may have been made; ask again: authsvc {again}\n"
    assert (caller.stdout, caller.stderr) == ("", said)


REFUSALS = [
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
]


class Failing(grpc.GenericRpcHandler):
    """A key service whose every call ends with the same status."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self._status = status

    def service(self, _details: grpc.HandlerCallDetails) -> Any:
        """Return what handles any method."""

        async def fail(_request: bytes, context: Any) -> bytes:
            await context.abort(self._status, "as it was told to")
            raise AssertionError  # abort does not return

        return grpc.unary_unary_rpc_method_handler(fail)


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
async def test_a_change_that_fails_may_have_been_made_unless_it_was_refused(
    system: System, status: grpc.StatusCode
) -> None:
    """An error of the service, or of a proxy before it, may follow the commit."""
    server = grpc.aio.server(handlers=[Failing(status)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    variables = {"AUTHSVC_ADDRESS": f"127.0.0.1:{port}", "AUTHSVC_ADMIN_TOKEN": "a" * 43}
    caller = system.launch("authsvc", "issue", "demo", **variables)
    assert await caller.ended() == (1 if status in REFUSALS else 3)
    maybe_made = "; the change may have been made; ask again: authsvc issue demo\n"
    assert caller.stderr.endswith(maybe_made) is (status not in REFUSALS)
    assert "as it was told to" in caller.stderr
    await server.stop(None)


async def test_a_read_that_fails_says_nothing_of_a_change(system: System) -> None:
    server = grpc.aio.server(handlers=[Failing(grpc.StatusCode.INTERNAL)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    variables = {"AUTHSVC_ADDRESS": f"127.0.0.1:{port}", "AUTHSVC_ADMIN_TOKEN": "a" * 43}
    reader = system.launch("authsvc", "holders", **variables)
    assert await reader.ended() == 1
    assert reader.stderr == "authsvc: as it was told to (INTERNAL)\n"
    await server.stop(None)


async def test_a_change_that_never_reached_the_key_service_was_not_made(system: System) -> None:
    """Nothing is said of a change when there was no connection."""
    cluster = await start_cluster(system)
    await cluster.first.kill()
    done = system.run("authsvc", "issue", "demo")
    assert done.returncode == 3
    assert "refuses connections" in done.stderr
    assert "change" not in done.stderr


async def test_a_margin_that_ordinary_clocks_exceed_is_warned_of_at_the_start(system: System) -> None:
    """Rule 12: less than 0.1 s, or a thousandth of the lease."""
    settings = {("0", "60"): 1, ("0.09", "1"): 1, ("3.5", "3600"): 1, ("3.6", "3600"): 0, ("0.1", "60"): 0}
    for number, (margin, lease) in enumerate(settings):
        variables = {"AUTHSVC_LEASE_MARGIN_SECONDS": margin, "AUTHSVC_LEASE_SECONDS": lease}
        service = await system.key_service(AUTHSVC_STATE_DIR=str(system.directory / str(number)), **variables)
        assert service.stderr.count("lease_margin_thin") == settings[margin, lease], (margin, lease)
        await service.stop()


async def test_changes_are_shown_as_they_are_made_until_it_is_interrupted(system: System) -> None:
    await start_cluster(system)
    follower = system.launch("authsvc", "changes", "--follow")
    for number in range(1, 4):
        system.issue(f"project-{number}")
        await until(f"change {number} is shown", lambda number=number: follower.stdout.count("\n") == number)
    follower.send(signal.SIGINT)
    assert await follower.ended() in (0, 128 + signal.SIGINT)
    line = re.compile(rf" +(\d+)  \S+ {TIME}  issue +(\S+)  key_[0-9a-f]{{16}}  by admin")
    shown = [line.fullmatch(it) for it in follower.stdout.splitlines()]
    assert [it.groups() for it in shown if it] == [(str(number), f"project-{number}") for number in range(1, 4)]
    assert follower.stderr == ""


def printed_in(encoding: str, system: System, command: str) -> subprocess.CompletedProcess[bytes]:
    environment = system.environment(PYTHONIOENCODING=encoding)
    return subprocess.run([BIN / "authsvc", command], env=environment, capture_output=True, timeout=DEADLINE_SECONDS)


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", r"Zoë \u540d"), ("ascii", "Zoë 名")])
async def test_a_name_beyond_the_encoding_of_the_output_is_shown_nevertheless(
    system: System, encoding: str, name: str
) -> None:
    """Escaped; for ASCII, which is what is set where nobody set anything, click writes UTF-8."""
    await start_cluster(system)
    assert system.run("authsvc", "issue", "demo", LOGNAME="Zoë 名").returncode == 0
    with closing(sqlite3.connect(system.state_dir / "authsvc.db")) as connection, connection:
        connection.execute(
            "INSERT INTO leases (holder_id, name, epoch, acknowledged_revision, expire_time, renew_time, is_released)"
            " SELECT 'holder', 'Zoë 名', '', 0, create_time, create_time, 0 FROM changes"
        )
    for command in ("changes", "holders"):
        done = printed_in(encoding, system, command)
        assert (done.returncode, done.stderr) == (0, b"")
        assert name in done.stdout.decode("utf-8" if encoding == "ascii" else encoding)


async def test_changes_begin_where_they_are_asked_to_and_name_the_keys(system: System) -> None:
    """With --follow not with the whole history, unless that is asked for."""
    await start_cluster(system)
    for number in range(1, 104):
        system.issue(f"project-{number}")

    def revisions(*options: str) -> list[int]:
        done = system.run("authsvc", "changes", *options)
        assert done.returncode == 0
        return [int(line.split()[0]) for line in done.stdout.splitlines()]

    assert revisions() == list(range(1, 104))
    assert revisions("--last", "3") == [101, 102, 103]
    assert revisions("--last", "102") == list(range(2, 104)), "over two pages"
    assert revisions("--last", "999") == list(range(1, 104))
    assert revisions("--last", "0") == []
    assert revisions("--after", "101") == [102, 103]
    assert revisions("--last", "5", "--project", "project-2") == [2]
    assert system.run("authsvc", "changes", "--last", "1", "--after", "1").returncode == 2
    beginnings = {"": 94, "--last 2": 102, "--after 0": 1}
    followers = [system.launch("authsvc", "changes", "--follow", *options.split()) for options in beginnings]
    for follower in followers:
        await until("it shows what there is", lambda follower=follower: "project-103" in follower.stdout)
    old, _, new = system.run("authsvc", "revoke", "project-1", "--yes").stderr.split("\n")[0].partition("; its next")
    old_id, new_id = old.split()[1], new.split()[-1]
    for follower, first in zip(followers, beginnings.values(), strict=True):
        await until("the revocation is shown", lambda follower=follower: "revoke" in follower.stdout)
        lines = follower.stdout.splitlines()
        assert [int(line.split()[0]) for line in lines] == list(range(first, 105))
        assert f"revoke       project-1  {old_id}, next {new_id}  by" in lines[-1]


async def test_following_changes_outlives_a_restart_of_the_key_service(system: System) -> None:
    """It is said once that the service is away, and nothing is shown twice or left out."""
    cluster = await start_cluster(system)
    system.issue("before")
    follower = system.launch("authsvc", "changes", "--follow")
    await until("it shows what there is", lambda: "before" in follower.stdout)
    await cluster.first.kill()
    await until("it says that the service is away", lambda: "unavailable, trying again" in follower.stderr)
    await system.key_service(AUTHSVC_LISTEN=cluster.first.address)
    system.issue("after")
    await until("it goes on", lambda: "after" in follower.stdout)
    follower.send(signal.SIGINT)
    assert await follower.ended() in (0, 128 + signal.SIGINT)
    assert [line.split()[4] for line in follower.stdout.splitlines()] == ["before", "after"]
    assert follower.stderr.count("\n") == 1

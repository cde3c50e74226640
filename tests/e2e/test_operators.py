"""What operators see of a revocation: by when it holds, who holds leases, and the audit trail as it grows."""

import re
import signal
import sqlite3
from contextlib import closing

import psutil
import pytest

from tests.e2e.cluster import start_cluster
from tests.e2e.processes import System, until
from tests.e2e.tcp_proxy import TcpProxy

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
            "INSERT INTO leases (holder_id, name, epoch, acknowledged_revision, expire_time, renew_time, is_gone)"
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
        service = await system.key_service(AUTHSVC_STATE_DIR=str(system.folder / str(number)), **variables)
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
    shown = [re.fullmatch(rf" +(\d+)  \S+ {TIME}  issue +(\S+)  by admin", it) for it in follower.stdout.splitlines()]
    assert [it.groups() for it in shown if it] == [(str(number), f"project-{number}") for number in range(1, 4)]
    assert follower.stderr == ""

"""What operators see of a revocation: by when it holds, who holds leases, and the audit trail as it grows."""

import re
import signal
import sqlite3
from contextlib import closing

import psutil

from tests.e2e.cluster import start_cluster
from tests.e2e.processes import System, until

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

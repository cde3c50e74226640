"""A key database that was removed, moved, replaced or overwritten under the services: none says that all is well."""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.load import body
from tests.e2e.processes import Service, System
from tests.http_exchange import get, post
from tests.waiting import until

LEASES = {"AUTHSVC_LEASE_SECONDS": "2", "AUTHSVC_LEASE_MARGIN_SECONDS": "0.5"}
REMEDY = "run 'authsvc renew-epoch'"


def back_up(database: Path, copy: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def checkpoint(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint")


def remove(database: Path, _: Path) -> None:
    for path in database.parent.glob("authsvc.db*"):
        path.unlink()


def move(database: Path, _: Path) -> None:
    database.rename(database.with_name("moved"))


def replace(database: Path, backup: Path) -> None:
    database.rename(database.with_name("moved"))
    backup.rename(database)


def overwrite(database: Path, backup: Path) -> None:
    database.write_bytes(backup.read_bytes())


async def ready_status(bridge: Service) -> int:
    return (await get(bridge.address, "/ready")).status


async def is_ready(bridge: Service) -> bool:
    return await ready_status(bridge) == 200


async def is_unready(bridge: Service) -> bool:
    return await ready_status(bridge) == 503


def key_of(system: System, project: str) -> str:
    shown: str = json.loads(system.run("authsvc", "keys", project, "--json").stdout)[0]["key_id"]
    return shown


def check_not_done(system: System, *command: str) -> None:
    """Neither the status nor the line says that it was done."""
    done = system.run("authsvc", *command)
    assert (done.returncode, done.stdout) == (3, "")
    assert "everywhere" not in done.stderr
    assert re.fullmatch(r"authsvc: the key service is unavailable: .*moved, removed or replaced.*\n", done.stderr)


@pytest.mark.parametrize(
    ("lose", "workers"),
    [
        (remove, 2),
        (move, 1),
        (replace, 1),
        (overwrite, 2),
        pytest.param(remove, 1, marks=pytest.mark.long),
        pytest.param(move, 2, marks=pytest.mark.long),
        pytest.param(replace, 2, marks=pytest.mark.long),
        pytest.param(overwrite, 1, marks=pytest.mark.long),
    ],
)
async def test_no_change_is_said_to_be_made_and_the_bridge_says_that_it_is_not_ready(
    system: System, lose: Callable[[Path, Path], None], workers: int
) -> None:
    """And goes on once the file is back; with another one in its place, once the service is started again."""
    service = await system.key_service(AUTHSVC_WORKERS=str(workers), **LEASES)
    bridge = await system.bridge()
    database, backup = system.state_dir / "authsvc.db", system.directory / "backup.db"
    first = system.issue("demo")
    first_id = key_of(system, "demo")
    back_up(database, backup)
    assert system.run("authsvc", "revoke", "demo", "--yes").returncode == 0
    checkpoint(database)
    second = system.issue("another")
    await until("the bridge takes logs", lambda: is_ready(bridge))
    assert (await post(bridge.address, second, body("before", 1))).status == 200

    lose(database, backup)
    check_not_done(system, "issue", "other")
    check_not_done(system, "revoke", "another", "--yes")
    check_not_done(system, "revoke", "demo", "--key-id", first_id, "--yes")
    check_not_done(system, "origins", "demo", "https://shop.example")
    check_not_done(system, "keys", "demo")
    await until("the bridge is not ready", lambda: is_unready(bridge))
    assert (await post(bridge.address, second, body("lost", 1))).status == 503
    assert (await post(bridge.address, first, body("lost", 1))).status == 503
    await until("each says why", lambda: service.stderr.count("database_lost") == workers)
    assert len(re.findall(r"database_lost .*authsvc\.db", service.stderr)) == workers

    if lose is move:
        database.with_name("moved").rename(database)
        await until("the bridge is ready again", lambda: is_ready(bridge))
        assert (await post(bridge.address, second, body("after", 1))).status == 200
        assert "dead everywhere" in system.run("authsvc", "revoke", "another", "--yes").stderr
        assert (await post(bridge.address, second, body("after", 1))).status == 401
        assert service.stderr.count("database_back") == workers
    await service.stop()
    if lose is move:
        return
    if lose is not replace:  # which nobody can set right but who did it
        refused = system.run("authsvc", "serve", AUTHSVC_WORKERS=str(workers))
        assert (refused.returncode, refused.stdout) == (2, "")
        what = "is missing" if lose is remove else "was overwritten"
        assert len(re.findall(rf"authsvc\.db {what}", refused.stderr)) in range(1, workers + 1)
        assert "Traceback" not in refused.stderr
        remove(database, backup)
        (system.state_dir / "database-seen").unlink()
        backup.rename(database)
    await system.key_service(AUTHSVC_LISTEN=service.address, **LEASES)
    assert system.run("authsvc", "validate", stdin=first).returncode == 0, "the backup is from before the revocation"


async def test_a_bridge_serves_no_mix_of_a_backup_and_of_what_was_before(system: System) -> None:
    """It was put in place with both services stopped or not: the operator is told, and a new epoch mends it."""
    service = await system.key_service()  # with leases of a minute
    bridge = await system.bridge()
    await until("the bridge has a lease", lambda: "lease_granted" in bridge.stderr)
    database, backup = system.state_dir / "authsvc.db", system.directory / "backup.db"
    old = system.issue("demo")
    gone = system.issue("gone")
    back_up(database, backup)
    new = system.run("authsvc", "revoke", "demo", "--yes").stdout.strip()
    later = system.issue("later")
    statuses = {old: 401, new: 200, later: 200, gone: 200}

    async def answers() -> dict[str, int]:
        return {key: (await post(bridge.address, key, body("log", 1))).status for key in statuses}

    assert await answers() == statuses
    await service.stop()
    backup.rename(database)
    service = await system.key_service(AUTHSVC_LISTEN=service.address)
    await until("the operator is told", lambda: service.stderr.count("revisions_lost") == 1)
    assert REMEDY in service.stderr
    await until("the bridge gives up what it has", lambda: "lease_lost" in bridge.stderr)
    assert await answers() == {old: 200, new: 401, later: 401, gone: 200}
    revoked = system.run("authsvc", "revoke", "gone", "--yes")
    assert "everywhere" not in revoked.stderr
    assert "renew-epoch" in revoked.stderr
    assert await answers() == {old: 200, new: 401, later: 401, gone: 401}

    assert system.run("authsvc", "renew-epoch", "--yes").returncode == 0
    await until("the bridge has a lease again", lambda: bridge.stderr.count("lease_granted") == 2)
    assert await answers() == {old: 200, new: 401, later: 401, gone: 401}
    assert service.stderr.count("revisions_lost") == 1
    await service.stop()
    service = await system.key_service(AUTHSVC_LISTEN=service.address)
    assert "revisions_lost" not in service.stderr


async def test_a_backup_is_not_opened_beside_the_wal_of_a_service_that_was_killed(system: System) -> None:
    """SQLite would take what that has for the backup's own."""
    service = await system.key_service()
    database, backup = system.state_dir / "authsvc.db", system.directory / "backup.db"
    key = system.issue("demo")
    back_up(database, backup)
    system.issue("other")
    await until("it is noted", lambda: '"revision":2' in (system.state_dir / "database-seen").read_text())
    await service.kill()
    backup.rename(database)
    content = database.read_bytes()
    for command in (["serve"], ["migrate"], ["renew-epoch", "--yes"]):
        refused = system.run("authsvc", *command)
        assert refused.returncode == 2
        assert re.fullmatch(r"authsvc: .*authsvc\.db is another file than .*-wal and .*-shm away.*\n", refused.stderr)
    assert database.read_bytes() == content
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink()
    service = await system.key_service()
    assert system.run("authsvc", "validate", stdin=key).returncode == 0
    assert "revisions_lost" in service.stderr

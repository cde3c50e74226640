"""Stores that take no writes: a 503 of the bridge, UNAVAILABLE of the key service, until they do again."""

import json
import random
import re
import resource
import sqlite3
import sys
from contextlib import closing

import grpc
import pytest

from tests.e2e.load import body
from tests.e2e.processes import Service, System
from tests.e2e.stored_logs import messages
from tests.http_exchange import Answer, get, post
from tests.waiting import until


async def ready_status(bridge: Service) -> int:
    return (await get(bridge.address, "/ready")).status


def check_refused(answer: Answer) -> None:
    assert (answer.status, answer.json) == (503, {"error": "Log store unavailable"})
    assert answer.headers["retry-after"] == "1"
    assert "x-ratelimit-limit" in answer.headers


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a running process")
async def test_a_full_disk_is_a_503_and_over_when_there_is_room_again(system: System) -> None:
    """A limit on the size of the process's files (EFBIG) stands for the disk's end (ENOSPC).

    A file system small enough to fill needs root to mount; SQLite meets both errors in the same place, in the middle
    of writing its WAL.
    """
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    assert (await post(bridge.address, key, body("before", 1))).status == 200

    _, hard = resource.prlimit(bridge.pid, resource.RLIMIT_FSIZE)
    wal_bytes = (system.state_dir / "logs.db-wal").stat().st_size
    resource.prlimit(bridge.pid, resource.RLIMIT_FSIZE, (wal_bytes + 2000, hard))  # room for half a page
    large = json.dumps({"logs": [{"level": "info", "message": random.Random(1).randbytes(500_000).hex()}]}).encode()
    check_refused(await post(bridge.address, key, large))  # it cannot be compressed to less than half
    check_refused(await post(bridge.address, key, large))
    answer = await get(bridge.address, "/ready")
    assert (answer.status, answer.json["reason"]) == (503, "the log store refuses writes")
    assert messages(system.state_dir) == ["before/0"]

    resource.prlimit(bridge.pid, resource.RLIMIT_FSIZE, (hard, hard))

    async def ready() -> bool:
        return await ready_status(bridge) == 200

    await until("the bridge is ready", ready)
    assert (await post(bridge.address, key, body("after", 2))).status == 200
    assert messages(system.state_dir) == ["before/0", "after/0", "after/1"]
    assert "log_store_lost" in bridge.stderr
    assert "log_store_back" in bridge.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a running process")
@pytest.mark.parametrize("room_bytes", [2, 30, 5000])
async def test_a_full_disk_is_no_key_database_that_somebody_overwrote(system: System, room_bytes: int) -> None:
    """Whatever is cut short: the mark that a WAL begins with, the rest of its header, or a page."""
    service = await system.key_service()
    with closing(sqlite3.connect(system.state_dir / "authsvc.db")) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall() == [(0, 0, 0)]
    _, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (room_bytes, hard))
    for _ in range(2):
        with pytest.raises(grpc.RpcError, match="the database cannot answer now"):
            system.issue("refused")
    assert (system.state_dir / "authsvc.db-wal").stat().st_size == room_bytes
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert system.issue("stored")
    assert "database_lost" not in service.stderr


async def test_a_database_that_another_process_locks_is_a_503_until_it_lets_go(system: System) -> None:
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    assert (await post(bridge.address, key, body("before", 1))).status == 200
    with closing(sqlite3.connect(system.state_dir / "logs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        check_refused(await post(bridge.address, key, body("locked", 3)))
        assert await ready_status(bridge) == 503
        other.execute("ROLLBACK")

    async def stored() -> bool:
        return (await post(bridge.address, key, body("after", 1))).status == 200

    await until("logs are stored", stored)
    assert messages(system.state_dir) == ["before/0", "after/0"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_log_store_that_is_moved_is_a_503_until_it_is_back(system: System, workers: int) -> None:
    """Nothing is acknowledged that would not be found in its file."""
    await system.key_service()
    bridge = await system.bridge(HTTPBRIDGE_WORKERS=str(workers))
    key = system.issue("demo")
    store, moved = system.state_dir / "logs.db", system.state_dir / "old.db"
    assert (await post(bridge.address, key, body("before", 1))).status == 200

    store.rename(moved)
    check_refused(await post(bridge.address, key, body("moved", 2)))

    async def is_unready() -> bool:  # each worker within the second for which it trusts its last commit
        return await ready_status(bridge) == 503

    await until("the bridge is not ready", is_unready)
    assert not store.exists()
    assert re.search(r"log_store_lost .*logs\.db .*moved, removed or replaced", bridge.stderr)

    moved.rename(store)
    assert (await post(bridge.address, key, body("after", 1))).status == 200
    assert messages(system.state_dir) == ["before/0", "after/0"]


async def test_a_log_store_that_is_removed_is_a_503_until_the_bridge_is_started_again(system: System) -> None:
    await system.key_service()
    bridge = await system.bridge()
    key = system.issue("demo")
    assert (await post(bridge.address, key, body("before", 1))).status == 200
    for path in system.state_dir.glob("logs.db*"):
        path.unlink()
    check_refused(await post(bridge.address, key, body("removed", 2)))
    await bridge.stop()
    bridge = await system.bridge()
    assert (await post(bridge.address, key, body("after", 1))).status == 200
    assert messages(system.state_dir) == ["after/0"]

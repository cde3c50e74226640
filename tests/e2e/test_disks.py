"""Disks of a test's own: one that is nearly full, and one that can only be read."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.load import body
from tests.e2e.processes import System
from tests.http_exchange import get, post
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which takes root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,mode=700", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_bridge_on_a_nearly_full_disk_is_not_ready(disk: Path, system: System, workers: str) -> None:
    """Although it takes small batches to the last: a large one would be refused."""
    await system.key_service()
    key = system.issue("shop")
    bridge = await system.bridge(HTTPBRIDGE_STATE_DIR=str(disk), HTTPBRIDGE_WORKERS=workers, **token(system))

    async def is_ready() -> bool:
        return (await get(bridge.address, "/ready")).status == 200

    await until("the bridge is ready", is_ready)
    filler = disk / "filler"
    filler.write_bytes(bytes(40 * 1024 * 1024))
    for _ in range(3):
        assert (await post(bridge.address, key, body("small", 1))).status == 200
        answer = await get(bridge.address, "/ready")
        assert (answer.status, answer.json["reason"]) == (503, "the log store refuses writes")
    assert "log_disk_nearly_full" in bridge.stderr
    filler.unlink()
    await until("the bridge is ready again", is_ready)


async def test_logs_are_read_from_a_disk_that_can_only_be_read(disk: Path, system: System) -> None:
    await system.key_service()
    key = system.issue("shop")
    state = {"HTTPBRIDGE_STATE_DIR": str(disk)}
    bridge = await system.bridge(**state, **token(system))
    assert (await post(bridge.address, key, body("kept", 2))).status == 200
    await bridge.stop()
    forbid_writing(disk)
    shown = system.run("httpbridge", "logs", "shop", "--json", **state)
    assert shown.returncode == 0
    assert [json.loads(line)["message"] for line in shown.stdout.splitlines()] == ["kept/0", "kept/1"]
    refused = system.run("httpbridge", "serve", **state, **token(system))
    assert refused.returncode == 2
    assert refused.stderr.startswith("httpbridge: HTTPBRIDGE_STATE_DIR: ")
    assert refused.stderr.count("\n") == 1


def forbid_writing(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def token(system: System) -> dict[str, str]:
    """Return the variable that has the bridge's token, which is in another directory than its logs."""
    return {"HTTPBRIDGE_KEY_SERVICE_TOKEN": (system.state_dir / "bridge-token").read_text().strip()}

"""The parent of workers, with real processes that do as little as a worker can."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from structlog.testing import capture_logs

from authsvc.runtime.control_channel import WorkerSpec
from authsvc.runtime.environment import Address
from authsvc.runtime.workers import Parent, StartFailedError, WorkerLimits
from tests.waiting import until

# A worker as the parent sees it. It appends what happens to a file, and does what files of its name tell it.
WORKER = """
import os, signal, socket, sys
from pathlib import Path

directory, spec = Path(sys.argv[1]), sys.argv[2]
name, fd, address = spec.split(":", 2)
channel = socket.socket(fileno=int(fd))

def note(event):
    with (directory / "events").open("a") as events:
        events.write(f"{name} {event}\\n")

def stop(*_):
    note("stopped")
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, lambda *_: channel.send(b"n"))
note("began")
if (directory / f"{name}-fails").exists():
    sys.exit(int((directory / f"{name}-fails").read_text()))
if not (directory / f"{name}-hangs").exists():
    note("ready")
    channel.send(b"r")
while said := channel.recv(100):
    note("notified")
note("was hung up on")
"""
PROGRAM = (sys.executable, "-ISc", WORKER)


class Family:
    """A parent that runs, and what its workers did."""

    def __init__(
        self, directory: Path, *names: str, helpers: Sequence[str] = (), limits: WorkerLimits = WorkerLimits()
    ) -> None:
        self.directory = directory
        self.stop = asyncio.Event()
        self.starts = 0
        parent = Parent(Address("127.0.0.1", 8080), time.monotonic, PROGRAM, limits)
        workers, helping = (dict.fromkeys(group, (str(directory),)) for group in (names, helpers))
        self.life = asyncio.create_task(parent.run(workers, self.stop, self._started, helping))

    def _started(self) -> None:
        self.starts += 1
        self.note("all are ready")

    def note(self, event: str) -> None:
        with (self.directory / "events").open("a") as events:
            events.write(f"parent: {event}\n")

    @property
    def events(self) -> list[str]:
        path = self.directory / "events"
        return path.read_text().splitlines() if path.exists() else []

    async def saw(self, event: str, times: int = 1) -> None:
        """Return when it has happened so often; fail when the parent ends before."""
        await until(f"{event!r} {times} times", lambda: self.events.count(event) >= times or self.life.done())
        if self.life.done():
            self.life.result()
        assert self.events.count(event) == times


@asynccontextmanager
async def family(directory: Path, *names: str, helpers: Sequence[str] = ()) -> AsyncIterator[Family]:
    """Run workers; afterwards stop them, which ends them in order."""
    running = Family(directory, *names, helpers=helpers)
    try:
        await running.saw("parent: all are ready")
        yield running
    finally:
        running.stop.set()
        await running.life


def worker_pid(name: str) -> int:
    """Find the worker of that name among this process's children."""
    for child in Path("/proc/self/task").glob(f"{os.getpid()}/children"):
        for pid in child.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[-2].startswith(name.encode() + b":"):
                return int(pid)
    raise AssertionError(f"no worker {name}")


async def test_the_first_worker_starts_alone_and_helpers_with_it_and_they_end_after_all(tmp_path: Path) -> None:
    async with family(tmp_path, "1", "2", "3", helpers=["writer"]) as running:
        begun = running.events
    assert sorted(begun[:4]) == ["1 began", "1 ready", "writer began", "writer ready"]
    assert sorted(begun[4:-1]) == ["2 began", "2 ready", "3 began", "3 ready"]
    assert begun[-1] == "parent: all are ready"
    ended = running.events[len(begun) :]
    assert sorted(ended[:3]) == ["1 stopped", "2 stopped", "3 stopped"]
    assert ended[3:] == ["writer was hung up on"]
    assert running.starts == 1


async def test_a_worker_that_ends_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    async with family(tmp_path, "1", "2") as running:
        os.kill(worker_pid("2"), signal.SIGKILL)
        await running.saw("2 ready", times=2)
        os.kill(worker_pid("1"), signal.SIGTERM)
        await running.saw("1 ready", times=2)
    assert running.events.count("1 stopped") == 2
    assert running.events.count("2 stopped") == 1
    assert running.starts == 1


async def test_a_worker_that_cannot_start_again_is_tried_until_it_can(tmp_path: Path) -> None:
    """Its service runs on without it: what is wrong with it may pass."""
    async with family(tmp_path, "1", "2") as running:
        (tmp_path / "2-fails").write_text("2")
        os.kill(worker_pid("2"), signal.SIGKILL)
        await running.saw("2 began", times=3)
        (tmp_path / "2-fails").unlink()
        await running.saw("2 ready", times=2)
    assert running.events.count("1 began") == 1


@pytest.mark.parametrize("status", [1, 2, 3])
async def test_a_worker_that_fails_at_the_start_ends_all_with_its_status(tmp_path: Path, status: int) -> None:
    (tmp_path / "2-fails").write_text(str(status))
    running = Family(tmp_path, "1", "2")
    with pytest.raises(StartFailedError) as raised:
        await running.life
    assert raised.value.status == status
    assert running.starts == 0
    assert running.events == ["1 began", "1 ready", "2 began", "1 stopped"]


async def test_a_stop_while_they_start_ends_those_that_began_and_starts_no_other(tmp_path: Path) -> None:
    (tmp_path / "1-hangs").touch()
    running = Family(tmp_path, "1", "2")
    await running.saw("1 began")
    running.stop.set()
    await running.life
    assert running.events == ["1 began", "1 stopped"]
    assert running.starts == 0


async def test_a_worker_that_hangs_at_its_start_is_killed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "2-hangs").touch()
    with capture_logs() as logs:
        async with asyncio.timeout(60):
            running = Family(tmp_path, "1", "2", limits=WorkerLimits(start_seconds_max=1.0))
            await until("2 is tried again", lambda: running.events.count("2 began") >= 2)
            assert running.starts == 0
            (tmp_path / "2-hangs").unlink()
            await running.saw("parent: all are ready")
            running.stop.set()
            await running.life
    told = {"event": "worker_killed", "log_level": "error", "worker": "2", "reason": "not ready in 1 s"}
    assert told in logs


async def test_what_stops_the_service_may_reach_a_worker_that_starts_before_its_parent(tmp_path: Path) -> None:
    """As when a supervisor signals all processes: it is no failure to start."""
    (tmp_path / "1-fails").write_text("1")
    running = Family(tmp_path, "1", "2")
    await asyncio.sleep(0)  # for it to start the first
    (life,) = (task for task in asyncio.all_tasks() if task.get_name() == "worker 1")
    life.add_done_callback(lambda _: running.stop.set())
    await running.life
    assert running.events == ["1 began"]


@pytest.mark.parametrize("turns", range(8))
async def test_a_stop_while_the_parent_looks_at_the_end_of_a_worker_leaves_none_behind(
    tmp_path: Path, turns: int
) -> None:
    """One that served long is replaced without a wait."""
    limits = WorkerLimits(stable_after_seconds=0.0, stop_seconds_max=10.0)
    loop = asyncio.get_running_loop()

    def count_down(left: int) -> None:
        loop.call_soon(count_down, left - 1) if left else running.stop.set()

    def notice(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        events.append(event["event"])
        if event["event"] == "worker_ended":
            count_down(turns)
        raise structlog.DropEvent

    events: list[str] = []
    before = structlog.get_config()
    structlog.configure(processors=[notice])
    try:
        running = Family(tmp_path, "1", limits=limits)
        await running.saw("parent: all are ready")
        os.kill(worker_pid("1"), signal.SIGKILL)
        await running.life
    finally:
        structlog.configure(**before)
    assert "worker_killed" not in events


async def test_what_one_notifies_reaches_all_others(tmp_path: Path) -> None:
    async with family(tmp_path, "1", "2", "3") as running:
        os.kill(worker_pid("2"), signal.SIGUSR1)
        await running.saw("1 notified")
        await running.saw("3 notified")
    assert "2 notified" not in running.events


@pytest.mark.parametrize(
    ("before_seconds", "served_seconds", "expected_seconds"),
    [
        (0.0, 0.0, 0.1),
        (0.1, 0.0, 0.2),
        (0.2, 9.9, 0.4),
        (4.0, 0.0, WorkerLimits().restart_seconds_max),
        (WorkerLimits().restart_seconds_max, 0.0, WorkerLimits().restart_seconds_max),
        (WorkerLimits().restart_seconds_max, 10.0, 0.0),
    ],
)
def test_who_ends_young_waits_longer_each_time(
    before_seconds: float, served_seconds: float, expected_seconds: float
) -> None:
    assert WorkerLimits().restart_seconds(before_seconds, served_seconds) == expected_seconds


@pytest.mark.parametrize("text", ["", "1", "1:2", "1:x:127.0.0.1:80", "1:999999:127.0.0.1:80", "1:0:nowhere"])
def test_a_spec_that_no_parent_wrote_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="for `serve` to start"):
        WorkerSpec.parse(text)

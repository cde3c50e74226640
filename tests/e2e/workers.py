"""The processes of one service: its parent's children, found past the product. Used by `test_workers`."""

import psutil

from tests.e2e.processes import Service
from tests.waiting import until

START_SECONDS_MAX = 60.0
"""For a worker beside a load that takes all of the machine."""


def workers(service: Service) -> dict[str, psutil.Process]:
    """Return the service's processes by the names that their log lines have."""
    found = {}
    for child in psutil.Process(service.pid).children():
        command = child.cmdline()
        if command:  # else it has just ended
            found[command[-1].split(":")[0]] = child
    return found


async def kill(service: Service, name: str) -> None:
    """End one of them as `kill -9` does, and return when another one has its place and is ready."""
    before = starts(service, name)
    workers(service)[name].kill()
    await until(f"{name} is replaced", lambda: starts(service, name) > before, START_SECONDS_MAX)


def starts(service: Service, name: str) -> int:
    """Return how often the service has logged that this worker is ready."""
    return sum(_is_of(name, line) and "worker_started" in line for line in service.stderr.splitlines())


def have_answered(service: Service, event: str) -> bool:
    """Whether each of two workers has logged the event."""
    lines = [line for line in service.stderr.splitlines() if event in line]
    return all(any(_is_of(name, line) for line in lines) for name in ("1", "2"))


def _is_of(name: str, line: str) -> bool:
    return f"worker={name}" in line.split()

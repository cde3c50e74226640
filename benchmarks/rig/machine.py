"""On what was measured: the machine and the versions, without its name or paths. Used by `rig.document`."""

import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.rig.processes import LOAD_CORE, SERVER_CORE
from tests.postgres import PostgresServer

_SYNCS = 200


def facts() -> list[tuple[str, str]]:
    """Return what to know of it, name and value."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("the cores of servers and of load", _cores()),
        ("memory", f"{memory_gib:.0f} GiB"),
        ("load average before the run", f"{os.getloadavg()[1]:.1f}"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("an fsync of 4 KiB, median", f"{_sync_milliseconds():.2f} ms"),
        ("Python", platform.python_version()),
        *((name, version(name)) for name in ("aiohttp", "grpcio", "uvloop", "msgspec", "asyncpg")),
        ("SQLite", sqlite3.sqlite_version),
        ("PostgreSQL", _postgres()),
        ("wrk", _wrk()),
    ]


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> str:
    """Say which two are used, and whether the machine calls them threads of one core, which slow each other down."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{SERVER_CORE}/topology/thread_siblings_list")
    cores = f"{SERVER_CORE} and {LOAD_CORE}"
    if not siblings.exists():
        return cores
    is_one = LOAD_CORE in _listed(siblings.read_text())
    return f"{cores}: {'two threads of one core' if is_one else 'no threads of one core'}, as the kernel sees it"


def _listed(ranges: str) -> set[int]:
    """Return the numbers in a list of the kernel's, such as `0,4-6`."""
    pairs = [each.partition("-") for each in ranges.strip().split(",")]
    return {number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)}


def _sync_milliseconds() -> float:
    """Return how long the disk of temporary files takes to make a page durable: what a commit cannot be faster than."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def _postgres() -> str:
    server = PostgresServer()
    try:
        server.start()
        return server.sql("SHOW server_version").split()[0]
    finally:
        server.close()


def _wrk() -> str:
    program = shutil.which("wrk")
    if program is None:
        return "missing"
    said = subprocess.run([program, "-v"], capture_output=True, text=True)  # exits with 1
    return (said.stdout or said.stderr).split()[1]

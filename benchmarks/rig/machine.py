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

from tests.postgres import PostgresServer

_SYNCS = 200


def facts() -> list[tuple[str, str]]:
    """Return what to know of it, name and value."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
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

"""Servers as processes: started on a core of their own, watched for what they use, stopped. Used by `rig.services`."""

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SERVER_CORE = 0
LOAD_CORE = 1
"""Of this process, of what it starts to make load, and of PostgreSQL."""

_STOP_SECONDS_MAX = 20.0


class Server:
    """One server, with the processes that it starts itself; made by `start`."""

    def __init__(self, process: Process, address: str) -> None:
        self._process = process
        self._handle = psutil.Process(process.pid)
        self.address = address
        """`host:port`."""

    def cpu_seconds(self, word: str = "") -> float:
        """Return the processor time that it has used so far, user's and system's.

        With a word, that of the processes which have it in their command line alone.
        """
        total = 0.0
        for process in (self._handle, *self._handle.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                if not word or word in process.cmdline():
                    times = process.cpu_times()
                    total += times.user + times.system
        return total

    def resident_bytes(self) -> int:
        """Return how much memory it holds now."""
        return int(self._handle.memory_info().rss)

    async def stop(self) -> str:
        """Ask it to end, and wait; end it in any case. Return what it printed since it started, the first time."""
        if self._process.returncode is not None:
            return ""
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                output, _ = await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            output, _ = await self._process.communicate()
        return output.decode()


async def start(
    command: Sequence[str | Path], environ: Mapping[str, str], stderr: Path, cores: Sequence[int] = (SERVER_CORE,)
) -> Server:
    """Start a server and return once it has printed the line with `address=HOST:PORT`.

    Its standard error goes to the file. Raises RuntimeError with the end of it when the server ends instead.
    """
    with stderr.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=errors, env=dict(environ)
        )
    pin(process.pid, cores)
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    if "address=" not in line:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise RuntimeError(f"{command[0]} did not start: {stderr.read_text()[-2000:]}")
    return Server(process, line.partition("address=")[2].split()[0])


async def output_of(*command: str | Path, core: int | None = None) -> bytes:
    """Run a program that makes load, on this process's core unless told, and return what it printed.

    It ends when the caller is cancelled. Raises RuntimeError when it fails.
    """
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        if core is not None:
            pin(process.pid, [core])
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {output.decode()[-2000:]}")
    return output


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep a process, 0 being this one, on these cores, where the system has them and lets us."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > max(cores):
        os.sched_setaffinity(pid, cores)

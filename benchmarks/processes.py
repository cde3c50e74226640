"""The services as processes, for the other benchmarks."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path


async def start(name: str, environ: Mapping[str, str], core: int) -> tuple[Process, str]:
    """Start `NAME serve` on one core; return it and the address it says it listens on."""
    command = Path(sys.executable).parent / name
    process = await asyncio.create_subprocess_exec(command, "serve", stdout=PIPE, env=environ)
    pin(process.pid, core)
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    return process, line.partition("address=")[2].split()[0]


async def stop(process: Process) -> None:
    """Let a process end."""
    process.terminate()
    await process.wait()


def pin(pid: int, core: int) -> None:
    """Keep a process, 0 being this one, on one core, where there are several."""
    if (os.cpu_count() or 1) > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, {core})

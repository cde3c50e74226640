"""`scripts/under_load.py`: loops run beside a command and end with it, whatever ends it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

SCRIPT = Path(__file__).parent.parent / "scripts" / "under_load.py"
# Says which loops its starter has, and waits for a line.
COMMAND = """
import os, sys, psutil
print(*(child.pid for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()), flush=True)
sys.stdin.readline()
sys.exit(7)
"""


def under_load(*command: str, loops: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, f"--loops={loops}", "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def all_end(pids: Sequence[int]) -> None:
    await until("the loops end", lambda: not any(psutil.pid_exists(pid) for pid in pids))


def first_pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(pid) for pid in process.stdout.readline().split()]


async def test_loops_are_busy_until_the_command_ends_and_its_exit_status_is_passed_on() -> None:
    with under_load(sys.executable, "-c", COMMAND) as process:
        pids = first_pids(process)
        assert len(pids) == 2
        await until("each loop takes time", lambda: all(psutil.Process(pid).cpu_times().user >= 0.2 for pid in pids))
        process.communicate("go on\n")
    assert process.returncode == 7
    await all_end(pids)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
async def test_the_loops_end_when_the_script_is_ended(number: signal.Signals, status: int) -> None:
    with under_load(sys.executable, "-c", COMMAND) as process:
        pids = first_pids(process)
        process.send_signal(number)
        assert process.wait() == status
    await all_end(pids)


def test_a_command_killed_by_a_signal_is_told_by_the_exit_status() -> None:
    kill = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    with under_load(sys.executable, "-c", kill, loops=0) as process:
        process.communicate()
    assert process.returncode == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_an_error() -> None:
    with under_load(os.devnull, loops=1) as process:
        process.communicate()
    assert process.returncode == 1

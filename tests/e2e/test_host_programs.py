"""Programs that embed the Python client and end without closing it: no revocation waits for them."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Cluster, start_cluster
from tests.e2e.processes import System
from tests.waiting import DEADLINE_SECONDS, until

PROGRAM = """
import asyncio, signal, sys, threading, time
from authsvc.client import KeyValidator

address, token, what = sys.argv[1:]
validators = [KeyValidator(address, token) for _ in range(2 if what == "wait-with-two" else 1)]

async def main():
    for validator in validators:
        validator.start()
    while not all(validator.has_lease for validator in validators):
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    if what == "block":
        time.sleep(600)
    elif what.startswith("wait"):
        await asyncio.Event().wait()

if what == "return-in-thread":
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
else:
    asyncio.run(main())
"""


@contextmanager
def program(cluster: Cluster, what: str) -> "Iterator[subprocess.Popen[str]]":
    """Start the program, and go on when it has its lease."""
    arguments: Sequence[str] = (cluster.first.address, cluster.token("bridge"), what)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("what", "number", "status"),
    [
        ("wait", signal.SIGTERM, -signal.SIGTERM),
        ("wait-with-two", signal.SIGTERM, -signal.SIGTERM),
        ("wait", signal.SIGINT, -signal.SIGINT),
        ("return", None, 0),
        ("return-in-thread", None, 0),
    ],
)
async def test_a_program_that_ends_without_closing_its_client_keeps_no_revocation_waiting(
    system: System, what: str, number: signal.Signals | None, status: int
) -> None:
    cluster = await start_cluster(system)
    async with cluster.administrator() as administrator:
        life = await administrator.issue("shop")
        with program(cluster, what) as process:
            if number is not None:
                process.send_signal(number)
            process.wait(DEADLINE_SECONDS)
            assert process.returncode == status
        revoked = await administrator.revoke(life)
        assert revoked.response.propagation.effective
        assert not revoked.pending


@pytest.mark.parametrize("times", [1, 2])
async def test_sigterm_ends_a_program_that_does_not_get_to_its_event_loop(system: System, times: int) -> None:
    cluster = await start_cluster(system)
    with program(cluster, "block") as process:
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
        await until("the program ends", lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGTERM

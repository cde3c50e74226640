"""Signals: what does not mean the end ends nothing, and what means it may come more than once."""

import asyncio
import signal

import psutil
import pytest

from tests.e2e.processes import Service, System
from tests.e2e.workers import workers
from tests.http_exchange import get
from tests.waiting import DEADLINE_SECONDS

OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


async def started(system: System, what: str) -> Service:
    """Start one service; what it needs runs, too."""
    key_service = await system.key_service(**({"AUTHSVC_WORKERS": "2"} if what == "authsvc, 2 workers" else {}))
    if what.startswith("authsvc"):
        return key_service
    if what == "dashboard":
        return await system.dashboard()
    return await system.bridge(**({"HTTPBRIDGE_WORKERS": "2"} if what == "httpbridge, 2 workers" else {}))


SERVICES = pytest.mark.parametrize(
    "what", ["authsvc", "authsvc, 2 workers", "httpbridge", "httpbridge, 2 workers", "dashboard"]
)


@SERVICES
async def test_other_signals_end_nothing_and_the_end_is_the_same_however_often_it_is_asked_for(
    system: System, what: str
) -> None:
    """Asked for to the very end: also when everything is closed, and Python is about to exit."""
    service = await started(system, what)
    processes = [psutil.Process(service.pid), *workers(service).values()]
    for process in processes:
        for number in OTHERS:
            process.send_signal(number)
    if "httpbridge" in what:
        assert (await get(service.address, "/health")).status == 200
    async with asyncio.timeout(DEADLINE_SECONDS):
        while service.is_running:
            service.send(signal.SIGTERM)
            service.send(signal.SIGINT)
            await asyncio.sleep(0)
    assert await service.ended() == 0
    assert "worker_ended" not in service.stderr

"""Strangers who take everything of a dashboard that they can get, while a person wants to sign in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.processes import Service, System
from tests.httpbridge.dashboard.conftest import Browser
from tests.waiting import until

FILES_MAX = 256
CONNECTIONS = 300
HEAD = b"GET /projects HTTP/1.1\r\nHost: x\r\nX-Slow: "
FORM = (
    b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 99999\r\n\r\nname="
)
PAGE = b"GET /sign-in HTTP/1.1\r\nHost: x\r\n\r\n"


class Strangers:
    """Connections, of which those that were closed are opened again with each wave."""

    def __init__(self, service: Service, sent: bytes) -> None:
        self._host, _, port = service.address.rpartition(":")
        self._port = int(port)
        self._sent = sent
        self._wave = asyncio.Event()
        self.opened = 0

    @asynccontextmanager
    async def attacking(self) -> AsyncIterator[None]:
        """Hold them meanwhile, all of them once it begins."""
        tasks = [asyncio.create_task(self._hold()) for _ in range(CONNECTIONS)]
        try:
            await until("all are open", lambda: self.opened >= CONNECTIONS)
            yield
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes

    def come_again(self) -> None:
        self._wave.set()
        self._wave = asyncio.Event()

    async def _hold(self) -> None:
        while True:
            wave = self._wave
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                continue
            self.opened += 1
            try:
                writer.write(self._sent)
                while await reader.read(65536):
                    writer.write(self._sent if self._sent == PAGE else b"x")
            except ConnectionError:
                pass
            finally:
                writer.close()
            await wave.wait()


@pytest.mark.parametrize("sent", [HEAD, FORM, PAGE], ids=["heads without end", "forms without end", "pages in a row"])
async def test_a_person_signs_in_at_a_dashboard_whose_files_strangers_would_use_up(system: System, sent: bytes) -> None:
    """During the attack, and after it from the strangers' own address, too. No file is left open."""
    await system.key_service()
    system.files_max = FILES_MAX
    dashboard = await system.dashboard()
    token = (system.state_dir / "dashboard-token").read_text().strip()
    url = f"http://{dashboard.address}"

    async def visit(address: str) -> None:
        async with Browser(url, address) as browser:
            assert (await browser.sign_in("Ann", token)).status == 303
            assert (await browser.get("/projects")).status == 200

    def open_files() -> int:
        return len([*Path(f"/proc/{dashboard.pid}/fd").iterdir()])

    await visit("127.0.0.2")
    strangers = Strangers(dashboard, sent)
    async with strangers.attacking():
        for _ in range(3):
            strangers.come_again()
            await visit("127.0.0.2")
        assert open_files() < FILES_MAX
    await visit("127.0.0.1")
    await until("connections are given back", lambda: open_files() < FILES_MAX // 2)
    assert "accept_failed" not in dashboard.stderr
    await dashboard.stop()

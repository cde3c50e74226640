"""Strangers who take everything of a dashboard that they can get, while a person wants to sign in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.processes import Service, System, until
from tests.httpbridge.dashboard.conftest import Browser

FILES_MAX = 256
CONNECTIONS = 300
HEAD = b"GET /projects HTTP/1.1\r\nHost: x\r\nX-Slow: "
FORM = (
    b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 99999\r\n\r\nname="
)
PAGE = b"GET /sign-in HTTP/1.1\r\nHost: x\r\n\r\n"


class Refusals:
    """Connections that are opened again as soon as they are closed."""

    def __init__(self, service: Service, sent: bytes) -> None:
        self._host, _, port = service.address.rpartition(":")
        self._port = int(port)
        self._sent = sent
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
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    self.opened += 1
                    writer.write(self._sent)
                    while await reader.read(65536):
                        writer.write(self._sent if self._sent == PAGE else b"x")
                finally:
                    writer.close()
            await asyncio.sleep(0.5)


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
    async with Refusals(dashboard, sent).attacking():
        for _ in range(3):
            await visit("127.0.0.2")
        assert open_files() < FILES_MAX
    await visit("127.0.0.1")
    await until("connections are given back", lambda: open_files() < FILES_MAX // 2)
    assert "accept_failed" not in dashboard.stderr
    await dashboard.stop()

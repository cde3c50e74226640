"""The product as benchmarks start it is the product: its keys are valid, and only the sink may be another one."""

import asyncio
from pathlib import Path

from benchmarks.rig.processes import Server
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, head, key, unknown_key


async def answer(server: Server, api_key: str) -> bytes:
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head(api_key, len(body(2))) + body(2))
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def test_bridges_accept_the_keys_of_the_rig_and_store_unless_they_are_told_not_to() -> None:
    async with Rig() as rig:
        await rig.key_service(keys=3)
        for sink, stores in (("counted", True), ("null", False)):
            folder = rig.new_folder()
            bridge = await rig.bridge(sink, HTTPBRIDGE_LOG_STORE_URL=f"sqlite:///{folder}/logs.db")
            assert await answer(bridge, key(2)) == b"HTTP/1.1 200 OK\r\n"
            assert await answer(bridge, unknown_key(0)) == b"HTTP/1.1 401 Unauthorized\r\n"
            printed = await bridge.stop()
            assert has_logs(folder / "logs.db") == stores
            assert ("commits=1" in printed) == (sink == "counted")


def has_logs(database: Path) -> bool:
    return database.exists() and b"was paid by card" in database.read_bytes() + _wal(database)


def _wal(database: Path) -> bytes:
    wal = database.with_name(database.name + "-wal")
    return wal.read_bytes() if wal.exists() else b""

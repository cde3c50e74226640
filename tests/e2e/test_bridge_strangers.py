"""Strangers who take everything of a bridge that they can get, without a key, while others want to send logs."""

import resource
import socket
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.processes import Service, System
from tests.http_exchange import BODY, Connection, request
from tests.waiting import until

STRANGER = "127.0.0.2"
HEALTH = request(method="GET", target="/health")
PIPELINING, PIPELINED = 50, 200
SILENT = 800
FILES_MAX = 512
TRIES = 3


@contextmanager
def connected(service: Service, source: str, count: int) -> Iterator[list[socket.socket]]:
    """Give so many connections from an address of this machine."""
    host, _, port = service.address.rpartition(":")
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.socket()
            sockets.append(one)
            one.bind((source, 0))
            one.connect((host, int(port)))
            one.setblocking(False)
        yield sockets
    finally:
        for one in sockets:
            one.close()


def send(sockets: list[socket.socket], data: bytes) -> None:
    """Send the same on each that is still open."""
    for one in sockets:
        try:
            sent = one.send(data)
        except ConnectionError:
            continue
        assert sent == len(data)


def answers(sockets: list[socket.socket]) -> int:
    """Count the answers that have come, and forget them."""
    count = 0
    for one in sockets:
        try:
            while data := one.recv(1024 * 1024):
                count += data.count(b"HTTP/1.1 200 ")
        except BlockingIOError:
            pass
    return count


@pytest.mark.parametrize("source", ["127.0.0.1", STRANGER], ids=["from the same address", "from another"])
async def test_pipelined_requests_of_strangers_do_not_go_before_those_of_others(system: System, source: str) -> None:
    """Counted is how many of 10,000 are answered before the one that came last: it was most of them, seconds long."""
    await system.key_service()
    key = system.issue("shop")
    bridge = await system.bridge()
    before: dict[str, list[int]] = {"kept": [], "new": []}
    async with Connection(bridge.address) as kept:
        kept.send(request(key=key, body=BODY))
        assert (await kept.answer()).status == 200
        for _ in range(TRIES):
            for name, counts in before.items():
                with connected(bridge, source, PIPELINING) as strangers:
                    send(strangers, HEALTH * PIPELINED)
                    if name == "kept":
                        kept.send(request(key=key, body=BODY))
                        assert (await kept.answer()).status == 200
                    else:
                        async with Connection(bridge.address) as new:
                            new.send(HEALTH)
                            assert (await new.answer()).status == 200
                    count = answers(strangers)
                    counts.append(count)

                    def all_answered() -> bool:
                        nonlocal count
                        count += answers(strangers)
                        return count == PIPELINING * PIPELINED

                    await until("strangers have their answers, too", all_answered)
    assert {name: statistics.median(counts) < 1500 for name, counts in before.items()} == {"kept": True, "new": True}


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open as many connections as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SILENT + 400
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(
    ("pieces", "is_tls"),
    [(b"", False), (HEALTH[:10], False), (b"", True), (b"\x16\x03\x01\x02\x00" + bytes(5), True)],
    ids=["nothing", "heads byte by byte", "no TLS handshake", "TLS handshakes byte by byte"],
)
async def test_silent_connections_of_a_stranger_take_no_place_from_others(
    system: System, tmp_path: Path, pieces: bytes, is_tls: bool
) -> None:
    """800 of them, where the system allows 512 open files: health checks, other addresses and even his own go on."""
    await system.key_service()
    key = system.issue("shop")
    authority = Authority(tmp_path, "bridge")
    tls = authority.client_context() if is_tls else None
    certificate = authority.certificate("127.0.0.1") if is_tls else ("", "")
    variables = {"HTTPBRIDGE_TLS_CERT": certificate[0], "HTTPBRIDGE_TLS_KEY": certificate[1]}
    system.files_max = FILES_MAX
    bridge = await system.bridge(**variables)
    async with Connection(bridge.address, tls) as kept:
        kept.send(request(key=key, body=BODY))
        assert (await kept.answer()).status == 200
        with connected(bridge, STRANGER, SILENT) as strangers:
            for round_ in range(10):
                if pieces:
                    send(strangers, bytes([pieces[round_]]))
                for source in ("127.0.0.1", f"127.0.1.{round_ + 1}", STRANGER):
                    async with Connection(bridge.address, tls, source=source) as other:
                        other.send(HEALTH + request(key=key, body=BODY))
                        assert [(await other.answer()).status for _ in range(2)] == [200, 200], source
                kept.send(request(key=key, body=BODY))
                assert (await kept.answer()).status == 200
    assert "connections_evicted" in bridge.stderr
    assert f"address={STRANGER}" in bridge.stderr
    assert "connections_refused" not in bridge.stderr
    assert "accept_failed" not in bridge.stderr

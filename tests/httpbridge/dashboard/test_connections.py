"""Whatever strangers hold open, and however slowly they speak, there is a place for whoever comes next."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from structlog.testing import capture_logs

from authsvc.runtime.clock import now
from authsvc.runtime.networks import Networks
from httpbridge.dashboard.clients import CLIENT
from httpbridge.dashboard.connections import CONNECTION_LIMITS, ConnectionLimits, Connections
from httpbridge.dashboard.pages import Pages
from tests.httpbridge.dashboard.conftest import TOKEN, Browser, Dashboard, running
from tests.httpbridge.dashboard.test_sign_in import NOWHERE

NEW = "/projects/new"
UNFINISHED = b"GET /sign-in HTTP/1.1\r\nHost: x\r\nX-Slow: "
WHOLE = b"GET /sign-in HTTP/1.1\r\nHost: x\r\n\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
SLOW_FORM = b"POST /sign-in HTTP/1.1\r\nHost: x\r\n" + FORM + b"Content-Length: 99\r\n\r\na"


class Stranger:
    """A connection that does what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ended(self) -> bytes:
        """Wait until the dashboard has closed it; return what it still sent."""
        received = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(60):
                while data := await self.reader.read(65536):
                    received += data
        return received

    async def status(self) -> int:
        """Return the status of the next answer, of which the head alone is read."""
        answer = await self.reader.readuntil(b"\r\n\r\n")
        return int(answer.rpartition(b"HTTP/1.1 ")[2].split()[0])  # behind the body of the one before


class Refusals:
    """Those who connect to one dashboard."""

    def __init__(self, dashboard: Dashboard, stack: AsyncExitStack) -> None:
        host, port = dashboard.url.removeprefix("http://").split(":")
        self._host, self._port = host, int(port)
        self._stack = stack

    async def open(self, data: bytes = b"", *, address: str = "127.0.0.1") -> Stranger:
        """Connect, from that address of this machine, and send something."""
        reader, writer = await asyncio.open_connection(self._host, self._port, local_addr=(address, 0))
        self._stack.callback(lambda: writer.transport.abort())  # noqa: PLW0108 - keeps the writer
        writer.write(data)
        return Stranger(reader, writer)


@asynccontextmanager
async def strangers(dashboard: Dashboard) -> AsyncIterator[Refusals]:
    """Cut off whoever is still connected at the end."""
    async with AsyncExitStack() as stack:
        yield Refusals(dashboard, stack)


def small(tmp_path: Path, places: int = 16, /, **variables: str) -> AbstractAsyncContextManager[Dashboard]:
    """Run a dashboard with few places: 16, of which 12 are free for all, and one more is for each address."""
    return running(tmp_path, NOWHERE, now, ConnectionLimits(connections_max=places), **variables)


def impatient(tmp_path: Path) -> AbstractAsyncContextManager[Dashboard]:
    """Run a dashboard that waits neither for heads nor for responses to be taken."""
    limits = ConnectionLimits(head_seconds_max=0.3, response_seconds_max=0.3, look_seconds=0.05)
    return running(tmp_path, NOWHERE, now, limits)


async def request_of_a_person(dashboard: Dashboard, path: str) -> bytes:
    """Sign in, and return what asks for a path then."""
    browser = await dashboard.browser()
    session = f"dashboard_session_{dashboard.url.rpartition(':')[2]}={browser.session}"
    await browser.close()
    host = dashboard.url.removeprefix("http://")
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {session}\r\n\r\n".encode()


@pytest.mark.parametrize("sent", [b"", UNFINISHED, SLOW_FORM], ids=["silent", "unfinished head", "unfinished form"])
async def test_people_sign_in_while_strangers_hold_more_connections_than_there_are_places(
    tmp_path: Path, sent: bytes
) -> None:
    """From an address of their own, and from that of the strangers."""
    async with running(tmp_path, NOWHERE) as dashboard, strangers(dashboard) as them:
        held = [await them.open(sent) for _ in range(CONNECTION_LIMITS.connections_max + 50)]
        for address in ("127.0.0.2", "127.0.0.1"):
            connector = aiohttp.TCPConnector(local_addr=(address, 0))
            async with aiohttp.ClientSession(connector=connector) as session:
                for _ in range(3):
                    async with session.get(dashboard.url + "/sign-in") as answer:
                        assert answer.status == 200
            held += [await them.open(sent) for _ in range(20)]
        assert (await dashboard.browser()).session
        await held[0].ended()


async def test_who_has_waited_longest_makes_room_and_people_who_are_signed_in_do_last(
    tmp_path: Path,
) -> None:
    async with (
        small(tmp_path) as dashboard,
        strangers(dashboard) as them,
        Browser(dashboard.url) as browser,
    ):
        assert (await browser.sign_in()).status == 303
        assert (await browser.get(NEW)).status == 200  # its connection stays, and has waited longer than all others
        first, second, *_ = [await them.open(UNFINISHED) for _ in range(11)]
        with capture_logs() as logged:
            answered = await them.open(WHOLE)
            assert await answered.status() == 200
            await first.ended()
            second.send(b"\r\n\r\n")
            assert await second.status() == 200
            another = await them.open(WHOLE)
            assert await another.status() == 200
        assert (await browser.get(NEW)).status == 200
        evictions = [event for event in logged if event["event"] == "connections_evicted"]
        assert [(event["connections"], event["address"], event["of_address"]) for event in evictions] == [
            (12, "127.0.0.1", 12)
        ]


@pytest.mark.parametrize("path", ["/projects/%6eew", "//projects/new", "/projects/new/"])
async def test_who_is_signed_in_and_spells_a_path_oddly_makes_room_last_too(tmp_path: Path, path: str) -> None:
    async with small(tmp_path) as dashboard, strangers(dashboard) as them:
        request = await request_of_a_person(dashboard, path)
        person = await them.open(request)
        assert await person.status() == 200
        first, *_ = [await them.open(UNFINISHED) for _ in range(11)]
        answered = await them.open(WHOLE)
        assert await answered.status() == 200
        await first.ended()
        person.send(request)
        assert await person.status() == 200


async def test_an_address_with_its_share_takes_places_from_itself_and_the_others_from_whoever_waits(
    tmp_path: Path,
) -> None:
    """Once three quarters are taken. A proxy that is trusted speaks for many, and has no share."""
    async with (
        small(tmp_path, HTTPBRIDGE_TRUSTED_PROXIES="127.0.0.9") as dashboard,
        strangers(dashboard) as them,
    ):
        of_proxy = [await them.open(UNFINISHED, address="127.0.0.9") for _ in range(13)]
        honest = [await them.open(UNFINISHED, address=f"127.0.0.{number}") for number in (2, 3)]
        greedy = [await them.open(UNFINISHED) for _ in range(10)]
        for one in greedy[:-1]:
            await one.ended()
        for one in (*honest, greedy[-1], *of_proxy[:2]):
            one.send(b"\r\n\r\n")
            assert await one.status() == 200
        newcomer = await them.open(WHOLE, address="127.0.0.4")
        assert await newcomer.status() == 200
        await of_proxy[2].ended()


async def test_what_the_dashboard_works_on_is_not_cut_off_and_whoever_has_no_room_is_told(
    tmp_path: Path,
) -> None:
    """Live tails, here."""
    async with small(tmp_path, 4) as dashboard, strangers(dashboard) as them:
        request = await request_of_a_person(dashboard, "/projects/demo/logs/stream?after=0")
        tails = [await them.open(request) for _ in range(3)]
        for tail in tails:
            assert await tail.status() == 200
        with capture_logs() as logged:
            for _ in range(3):
                refused = await (await them.open()).ended()
                assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert b"frame-ancestors 'none'" in refused
        assert [event["event"] for event in logged] == ["connections_refused"]
        assert await (await them.open(WHOLE, address="127.0.0.2")).status() == 200


async def test_silent_tls_handshakes_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpbridge.http.listener.TLS_HANDSHAKE_SECONDS", 1000)
    ca, cert, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = ca.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    files = {"HTTPBRIDGE_TLS_CERT": str(cert), "HTTPBRIDGE_TLS_KEY": str(key)}
    async with small(tmp_path, **files) as dashboard, strangers(dashboard) as them:
        silent = [await them.open() for _ in range(30)]
        async with aiohttp.ClientSession() as session:
            url = dashboard.url.replace("http://", "https://") + "/sign-in"
            async with session.get(url, ssl=context) as answer:
                assert answer.status == 200
        for one in silent[:10]:
            await one.ended()


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (UNFINISHED,),
        (WHOLE, UNFINISHED),
        (b"GET /sign-in HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(90)),),
    ],
    ids=["silent", "unfinished", "a second one", "endless"],
)
async def test_a_head_that_is_not_finished_in_time_ends_the_connection(
    tmp_path: Path, parts: tuple[bytes, ...]
) -> None:
    is_endless = len(parts[0]) > 65536  # refused for its length, however much time there is
    run = running(tmp_path, NOWHERE) if is_endless else impatient(tmp_path)
    async with run as dashboard, strangers(dashboard) as them:
        stranger = await them.open()
        for part in parts:
            stranger.send(part)
            if part == WHOLE:
                assert await stranger.status() == 200
        await stranger.ended()


async def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(tmp_path: Path) -> None:
    """Each byte is no new beginning."""
    async with impatient(tmp_path) as dashboard, strangers(dashboard) as them:
        stranger = await them.open(UNFINISHED)
        ending = asyncio.create_task(stranger.ended())
        while not ending.done():
            stranger.send(b"x")
            await asyncio.wait([ending], timeout=0.02)
        await ending


async def test_a_connection_without_a_next_request_is_closed(tmp_path: Path) -> None:
    settings = {"HTTPBRIDGE_KEEPALIVE_SECONDS": "1"}
    async with running(tmp_path, NOWHERE, **settings) as dashboard, strangers(dashboard) as them:
        stranger = await them.open(WHOLE)
        assert await stranger.status() == 200
        await stranger.ended()


async def test_who_takes_no_responses_is_cut_off(tmp_path: Path) -> None:
    async with impatient(tmp_path) as dashboard, strangers(dashboard) as them:
        stranger = await them.open()
        stranger.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            while True:
                stranger.send(WHOLE * 100)
                await stranger.writer.drain()
                await asyncio.sleep(0)
        assert (await dashboard.browser()).session


async def test_who_asks_for_many_pages_at_once_lets_others_have_theirs_in_between(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it has arrived when the first one begins."""
    order: list[str] = []
    render = Pages.render

    def note(pages: Pages, request: web.Request, template: str, **values: Any) -> web.Response:
        order.append(request[CLIENT].address)
        return render(pages, request, template, **values)

    monkeypatch.setattr(Pages, "render", note)
    async with strangers(dashboard) as them:
        greedy = [await them.open() for _ in range(30)]
        honest = await them.open(address="127.0.0.2")
        for one in greedy:
            one.send(WHOLE * 3)
        honest.send(WHOLE)
        assert await honest.status() == 200
        for one in greedy:
            assert await one.status() == 200
        assert order.index("127.0.0.2") < 10


async def test_a_compressed_form_is_not_even_inflated_to_be_discarded(dashboard: Dashboard) -> None:
    """Its connection goes on: nobody has seen that it is no gzip."""
    async with strangers(dashboard) as them:
        form = b"POST /sign-in HTTP/1.1\r\nHost: x\r\n" + FORM + b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\n"
        stranger = await them.open(form + b"nonsense" + WHOLE)
        assert [await stranger.status() for _ in range(2)] == [400, 200]


async def test_a_form_of_too_many_fields_or_a_compressed_one_is_not_taken_apart(dashboard: Dashboard) -> None:
    stranger = await dashboard.browser(is_signed_in=False)
    content_type = {"Content-Type": "application/x-www-form-urlencoded"}
    csrf_token = (await stranger.get("/sign-in")).csrf_token.encode()
    fields = b"csrf_token=" + csrf_token + b"&name=Ann&token=" + TOKEN.encode()
    many = await stranger.post_raw("/sign-in", fields + b"&x" * 1000, **content_type)
    assert (many.status, "more than a form here can hold" in many.words) == (413, True)
    compressed = await stranger.post_raw("/sign-in", fields, **content_type, **{"Content-Encoding": "identity"})
    assert (compressed.status, "not what a form here sends" in compressed.words) == (400, True)
    assert (await stranger.post_raw("/sign-in", fields + b"&x" * 900, **content_type)).status == 303


async def test_a_shutdown_waits_for_a_request_whose_client_it_has_given_up() -> None:
    """Else the log store would be closed under a request that still has one of its connections."""
    begun, gate, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def respond(_request: web.Request) -> web.StreamResponse:
        begun.set()
        await gate.wait()
        ended.set()
        return web.Response()

    application = web.Application()
    application.router.add_get("/", respond)
    runner = web.AppRunner(application)
    await runner.setup()
    server = runner.server
    assert server is not None
    connections = Connections(server, Networks(), CONNECTION_LIMITS)
    ours, theirs = socket.socketpair()
    with theirs:
        await asyncio.get_running_loop().connect_accepted_socket(connections, ours)
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        closing = asyncio.create_task(connections.shutdown(0.01))
        theirs.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
        assert not closing.done()
        gate.set()
        await closing
        assert ended.is_set()
    await runner.cleanup()

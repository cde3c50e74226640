"""TLS and mutual TLS to the key service: it works, and what does not is one clear line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import ClientTls, TokenSource
from authsvc.client.key_client import KeyClient
from authsvc.client.verdicts import KeyServiceUnavailableError, Response, Verdict
from authsvc.runtime.environment import Address, ConfigurationError, Secret
from tests.authsvc.client.fake_key_service import BRIDGE_TOKEN, FakeKeyService, serve, server_credentials
from tests.clocks import Clock

KEY = ApiKey("dt_0123456789abcdef01234567")
VARIABLES = ("X_CA", "X_CERT", "X_CERT_KEY")
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Files:
    """Certificates as files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ca(self, authority: trustme.CA, name: str = "ca.pem") -> Path:
        path = self._directory / name
        authority.cert_pem.write_to_path(path)
        return path

    def client(
        self, authority: trustme.CA, not_after: datetime | None = None, name: str = "client"
    ) -> tuple[Path, Path]:
        leaf = authority.issue_cert("bridge", not_after=not_after)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="session")
def client_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def stranger() -> trustme.CA:
    return trustme.CA()


Start = Callable[..., Awaitable[Address]]


@pytest.fixture
async def start(service: FakeKeyService, authority: trustme.CA) -> AsyncIterator[Start]:
    """Start the service over TLS, with mutual TLS if there is a client CA."""
    servers = []

    async def start(client_ca: trustme.CA | None = None) -> Address:
        server, port = serve(service, "127.0.0.1:0", server_credentials(authority, client_ca=client_ca))
        await server.start()
        servers.append(server)
        return Address("127.0.0.1", port)

    yield start
    for server in servers:
        await server.stop(None)


async def ask(client: KeyClient) -> Response:
    (answer,) = await client.validate([(KEY, None)])
    assert isinstance(answer, Response)
    return answer


async def answers(client: KeyClient) -> bool:
    try:
        return (await ask(client)).decision.verdict is Verdict.ALLOWED
    except KeyServiceUnavailableError:
        return False


async def outcome(address: Address, tls: ClientTls, clock: Clock) -> str:
    """Return the verdict, or why there is none."""
    client = KeyClient(address, TokenSource(Secret(BRIDGE_TOKEN)), tls, clock)
    try:
        message: str = (await ask(client)).decision.verdict
    except KeyServiceUnavailableError as error:
        message = str(error)
    await client.close()
    assert message.isprintable()
    return message


async def test_the_service_is_reached_over_tls(start: Start, files: Files, authority: trustme.CA, clock: Clock) -> None:
    address = await start()
    tls = ClientTls(files.ca(authority))
    assert await outcome(address, tls, clock) == Verdict.ALLOWED
    assert await outcome(Address("localhost", address.port), tls, clock) == Verdict.ALLOWED


async def test_the_service_is_reached_over_mutual_tls(
    start: Start, files: Files, authority: trustme.CA, client_authority: trustme.CA, clock: Clock
) -> None:
    tls = ClientTls(files.ca(authority), *files.client(client_authority))
    assert await outcome(await start(client_authority), tls, clock) == Verdict.ALLOWED


async def test_a_wrong_ca_is_named(start: Start, files: Files, stranger: trustme.CA, clock: Clock) -> None:
    path = files.ca(stranger)
    message = await outcome(await start(), ClientTls(path, variables=VARIABLES), clock)
    assert "certificate of 127.0.0.1" in message
    assert f"X_CA={path}" in message


async def test_a_name_that_is_not_in_the_certificate_is_named(
    files: Files, service: FakeKeyService, clock: Clock, authority: trustme.CA
) -> None:
    server, port = serve(service, "127.0.0.1:0", server_credentials(authority, "example.com"))
    await server.start()
    message = await outcome(Address("localhost", port), ClientTls(files.ca(authority)), clock)
    assert "it is for another host" in message
    await server.stop(None)


async def test_an_expired_server_certificate_is_named(
    files: Files, service: FakeKeyService, clock: Clock, authority: trustme.CA
) -> None:
    server, port = serve(service, "127.0.0.1:0", server_credentials(authority, "localhost", not_after=YESTERDAY))
    await server.start()
    message = await outcome(Address("localhost", port), ClientTls(files.ca(authority)), clock)
    assert "certificate has expired" in message
    await server.stop(None)


async def test_a_missing_client_certificate_is_named(
    start: Start, files: Files, authority: trustme.CA, client_authority: trustme.CA, clock: Clock
) -> None:
    tls = ClientTls(files.ca(authority), variables=VARIABLES)
    message = await outcome(await start(client_authority), tls, clock)
    assert "demands a client certificate" in message
    assert "set X_CERT and X_CERT_KEY" in message


async def test_an_expired_client_certificate_is_named(
    start: Start, files: Files, authority: trustme.CA, client_authority: trustme.CA, clock: Clock
) -> None:
    certificate, key = files.client(client_authority, YESTERDAY)
    tls = ClientTls(files.ca(authority), certificate, key, VARIABLES)
    message = await outcome(await start(client_authority), tls, clock)
    assert f"does not accept our client certificate (X_CERT={certificate}): has it expired" in message


async def test_a_client_certificate_of_another_ca_is_named(
    start: Start, files: Files, authority: trustme.CA, client_authority: trustme.CA, stranger: trustme.CA, clock: Clock
) -> None:
    tls = ClientTls(files.ca(authority), *files.client(stranger), VARIABLES)
    message = await outcome(await start(client_authority), tls, clock)
    assert "is it signed by the CA that the key service expects?" in message


async def test_a_service_without_tls_is_named(
    address: Address, files: Files, authority: trustme.CA, clock: Clock
) -> None:
    assert "does not speak TLS" in await outcome(address, ClientTls(files.ca(authority)), clock)


async def test_a_service_that_accepts_connections_and_says_nothing_is_named(clock: Clock) -> None:
    """Two seconds are all that gRPC gives it."""
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = KeyClient(Address("127.0.0.1", port), TokenSource(Secret(BRIDGE_TOKEN)), None, clock, 60.0)
    with pytest.raises(KeyServiceUnavailableError, match=f"^127.0.0.1:{port} did not answer in time$"):
        await ask(client)
    await client.close()
    gone.set()
    server.close()


async def test_renewed_certificate_files_are_found_without_a_restart(
    start: Start, files: Files, authority: trustme.CA, client_authority: trustme.CA, clock: Clock
) -> None:
    """A bridge whose certificate expired recovers when the files are replaced."""
    tls = ClientTls(files.ca(authority), *files.client(client_authority, YESTERDAY))
    client = KeyClient(await start(client_authority), TokenSource(Secret(BRIDGE_TOKEN)), tls, clock)
    with pytest.raises(KeyServiceUnavailableError, match="expired"):
        await ask(client)
    files.client(client_authority)
    clock.now += 10.0
    async with asyncio.timeout(60):
        while not await answers(client):
            pass
    await client.close()


async def test_a_file_that_cannot_be_read_any_more_is_the_fault_until_a_call_succeeds(
    start: Start, files: Files, authority: trustme.CA, client_authority: trustme.CA, clock: Clock
) -> None:
    """It does not take turns with what the channels of before fail with."""
    certificate, key = files.client(client_authority, YESTERDAY)
    tls = ClientTls(files.ca(authority), certificate, key)
    client = KeyClient(await start(client_authority), TokenSource(Secret(BRIDGE_TOKEN)), tls, clock)
    with pytest.raises(KeyServiceUnavailableError, match="expired"):
        await ask(client)
    certificate.unlink()
    clock.now += 10.0
    for _ in range(9):  # by each channel twice
        with pytest.raises(KeyServiceUnavailableError, match=r"CLIENT_CERT: .*No such file"):
            await ask(client)
    files.client(client_authority)
    clock.now += 10.0
    async with asyncio.timeout(60):
        while not await answers(client):
            pass
    await client.close()


@pytest.mark.parametrize(
    ("broken", "variable", "reason"),
    [
        ("no ca", "X_CA", "No such file"),
        ("bad ca", "X_CA", "no certificate or crl found"),
        ("no certificate", "X_CERT", "No such file"),
        ("no key", "X_CERT_KEY", "No such file"),
        ("bad certificate", "X_CERT, X_CERT_KEY", "not a certificate and its"),
        ("bad key", "X_CERT, X_CERT_KEY", "not a certificate and its"),
        ("another key", "X_CERT, X_CERT_KEY", "key values mismatch"),
        ("certificate alone", "X_CERT and X_CERT_KEY", "go together"),
    ],
)
async def test_a_file_that_cannot_be_used_stops_the_start_and_is_named(
    files: Files, authority: trustme.CA, tmp_path: Path, clock: Clock, broken: str, variable: str, reason: str
) -> None:
    ca = files.ca(authority)
    certificate, key = files.client(authority)
    no_file, no_pem = tmp_path / "missing.pem", tmp_path / "text.pem"
    no_pem.write_text("not PEM\n")
    tls = {
        "no ca": ClientTls(no_file, None, None, VARIABLES),
        "bad ca": ClientTls(no_pem, None, None, VARIABLES),
        "no certificate": ClientTls(ca, no_file, key, VARIABLES),
        "no key": ClientTls(ca, certificate, no_file, VARIABLES),
        "bad certificate": ClientTls(ca, no_pem, key, VARIABLES),
        "bad key": ClientTls(ca, certificate, no_pem, VARIABLES),
        "another key": ClientTls(ca, certificate, files.client(authority, name="other")[1], VARIABLES),
        "certificate alone": ClientTls(ca, certificate, None, VARIABLES),
    }[broken]
    with pytest.raises(ConfigurationError) as caught:
        KeyClient(Address("127.0.0.1", 1), TokenSource(Secret(BRIDGE_TOKEN)), tls, clock)
    assert str(caught.value).startswith(variable)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()

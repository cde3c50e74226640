"""The bridge as it is started: what it asks of the system, and where and how it listens."""

import asyncio
import os
import resource
import ssl
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import psutil
import pytest
import trustme

from authsvc.runtime.environment import Address, ConfigurationError, ListenAddress, Token
from httpbridge.app import serve
from httpbridge.config import Config
from httpbridge.http.server import CONNECTIONS_MAX
from tests.authsvc.client.fake_key_service import FakeKeyService
from tests.authsvc.client.fake_key_service import serve as serve_keys
from tests.http_exchange import get, post
from tests.httpbridge.conftest import KEY


@asynccontextmanager
async def started(config: Config) -> AsyncIterator[Address]:
    """Run the bridge, with no key service to be found."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(config, stop, address.set_result))
        try:
            yield await address
        finally:
            stop.set()


@pytest.fixture
def open_files_max() -> Iterator[int]:
    """Set a small soft limit, and return the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(listen=ListenAddress("127.0.0.1", 0), key_service=Address("127.0.0.1", 1), state_dir=tmp_path)


async def test_as_many_open_files_are_asked_for_as_connections_may_need(config: Config, open_files_max: int) -> None:
    """Otherwise the usual 1,024 would be the bound, and accepting would fail at it."""
    async with started(config):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= (
        CONNECTIONS_MAX if open_files_max == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, open_files_max)
    )


async def test_a_free_port_is_one_address_though_the_name_has_several(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start line names one port, and nothing listens on another."""
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def resolve_to_two(host: Any, *arguments: Any, **keywords: Any) -> Any:
        hosts = ["127.0.0.1", "127.0.0.2"] if host == "localhost" else [host]
        return [found for one in hosts for found in await resolve(one, *arguments, **keywords)]

    monkeypatch.setattr(loop, "getaddrinfo", resolve_to_two)
    config = msgspec.structs.replace(config, listen=Address("localhost", 0))
    before = listening_ports()
    async with started(config) as address:
        assert listening_ports() - before == {address.port}


class Unwatched(FakeKeyService):
    """Answers, and refuses streams."""

    async def watch(self, requests: AsyncIterator[Any], context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the test says so")


async def test_a_bridge_without_a_lease_is_ready_and_says_that_each_request_asks(config: Config) -> None:
    service = Unwatched()
    server, port = serve_keys(service, "127.0.0.1:0")
    await server.start()
    key_service, token = Address("127.0.0.1", port), Token.parse(service.token)
    config = msgspec.structs.replace(config, key_service=key_service, key_service_token=token)
    async with started(config) as address:
        for asked in range(1, 4):
            assert (await post(str(address), KEY)).status == 200
            assert [call.api_key for call in service.calls] == [KEY] * asked
        answer = await get(str(address), "/ready")
    assert (answer.status, answer.json) == (
        200, {"status": "degraded", "reason": "there is no lease; each request asks the key service"},
    )  # fmt: skip
    await server.stop(None)


def listening_ports() -> set[int]:
    """Return the TCP ports of this process."""
    connections = psutil.Process().net_connections("tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def weak(context: ssl.SSLContext) -> ssl.SSLContext:
    """Allow what OpenSSL builds of long ago do."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    return context


async def test_tls_before_1_2_is_refused_whatever_the_interpreters_default(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    config = msgspec.structs.replace(config, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    default = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *arguments: weak(default(*arguments)))
    async with started(config) as address:
        for version, is_taken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            client = weak(default())
            authority.configure_trust(client)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                client.maximum_version = version
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", address.port, ssl=client)
            except (ssl.SSLError, ConnectionError):
                assert not is_taken
            else:
                assert is_taken
                writer.close()
                await writer.wait_closed()


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key"])
async def test_a_tls_file_that_is_missing_is_named(config: Config, tmp_path: Path, missing: str) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    files = {"tls_cert": tmp_path / "both.pem", "tls_key": tmp_path / "both.pem"} | {missing: tmp_path / "none.pem"}
    config = msgspec.structs.replace(config, **files)
    with pytest.raises(ConfigurationError) as caught:
        await serve(config, asyncio.Event(), lambda _: None)
    assert str(caught.value) == f"HTTPBRIDGE_{missing.upper()}: {tmp_path / 'none.pem'}: No such file or directory"


def test_what_the_bridge_writes_is_its_users_alone(tmp_path: Path) -> None:
    """Though the directory is open to others, and the mask of whoever starts it lets them read."""
    tmp_path.chmod(0o755)
    environ = os.environ | {"HTTPBRIDGE_LISTEN": "127.0.0.1:0", "HTTPBRIDGE_STATE_DIR": str(tmp_path)}
    command = [str(Path(sys.executable).parent / "httpbridge"), "serve"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, umask=0o022
    ) as bridge:
        assert bridge.stdout is not None
        assert b"listening" in bridge.stdout.readline()
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        bridge.terminate()
    assert bridge.returncode == 0
    assert "logs.db" in modes
    assert set(modes.values()) == {0o600}

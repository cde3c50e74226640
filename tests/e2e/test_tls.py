"""The whole path over HTTPS and mutual TLS; what does not fit is one clear line, a 503 and never a 401."""

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.processes import System
from tests.e2e.stored_logs import messages
from tests.http_exchange import Connection, get, post, request
from tests.waiting import until

HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Sign the services' certificates."""
    return Authority(tmp_path_factory.mktemp("servers"), "servers")


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Sign the certificates of the key service's callers."""
    return Authority(tmp_path_factory.mktemp("clients"), "clients")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, servers: Authority, clients: Authority) -> Iterator[System]:
    """Run a key service that asks for client certificates."""
    system = System(tmp_path_factory.mktemp("guarded"))
    configure_key_service(system, servers, clients)
    try:
        asyncio.run(system.key_service())
        yield system
    finally:
        system.close()


def configure_key_service(system: System, servers: Authority, clients: Authority) -> None:
    certificate, key = servers.certificate(*HOSTS)
    system.variables |= {
        "AUTHSVC_TLS_CERT": certificate,
        "AUTHSVC_TLS_KEY": key,
        "AUTHSVC_TLS_CLIENT_CA": clients.ca,
    }


def command_variables(ca: str, certificate: tuple[str, str] | None) -> dict[str, str]:
    variables = {"AUTHSVC_CA": ca}
    if certificate:
        variables |= {"AUTHSVC_CLIENT_CERT": certificate[0], "AUTHSVC_CLIENT_KEY": certificate[1]}
    return variables


def bridge_variables(ca: str, certificate: tuple[str, str] | None) -> dict[str, str]:
    variables = {"HTTPBRIDGE_KEY_SERVICE_CA": ca}
    if certificate:
        variables |= {
            "HTTPBRIDGE_KEY_SERVICE_CERT": certificate[0],
            "HTTPBRIDGE_KEY_SERVICE_CERT_KEY": certificate[1],
        }
    return variables


async def test_logs_pass_over_https_and_mutual_tls(system: System, servers: Authority, clients: Authority) -> None:
    configure_key_service(system, servers, clients)
    client = clients.certificate("bridge")
    system.variables |= command_variables(servers.ca, client)
    key_service = await system.key_service()
    certificate, key = servers.certificate(*HOSTS)
    bridge = await system.bridge(
        HTTPBRIDGE_TLS_CERT=certificate, HTTPBRIDGE_TLS_KEY=key, **bridge_variables(servers.ca, client)
    )
    assert (key_service.is_tls, bridge.is_tls) == (True, True)
    api_key = system.run("authsvc", "issue", "demo").stdout.strip()
    trust = servers.client_context()

    async def is_ready() -> bool:
        return (await get(bridge.address, "/ready", trust)).status == 200

    await until("the bridge is ready", is_ready)
    assert (await post(bridge.address, api_key, tls=trust)).status == 200
    assert (await post(bridge.address, "dt_" + "0" * 24, tls=trust)).status == 401
    assert messages(system.state_dir) == ["hello"]
    await bridge.stop()
    await key_service.stop()


async def test_plain_http_to_an_https_port_is_not_answered(system: System, servers: Authority) -> None:
    certificate, key = servers.certificate(*HOSTS)
    bridge = await system.bridge(HTTPBRIDGE_TLS_CERT=certificate, HTTPBRIDGE_TLS_KEY=key)
    async with Connection(bridge.address) as connection:
        connection.send(request(method="GET", target="/health"))
        assert await connection.is_closed_by_server()
    assert (await get(bridge.address, "/health", servers.client_context())).status == 200


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("wrong ca", r"the certificate of 127\.0\.0\.1:\d+ is not accepted: .*{ca}="),
        ("expired certificate", r"does not accept our client certificate \({certificate}=.*: has it expired"),
        ("stranger's certificate", r"does not accept our client certificate \({certificate}=.*signed by the CA"),
        ("no certificate", r"demands a client certificate .*set {certificate} and "),
        ("no tls", r"it may expect TLS, and no CA is configured"),
    ],
)
async def test_what_does_not_fit_is_one_clear_line_and_a_503(
    guarded: System, servers: Authority, clients: Authority, fault: str, line: str
) -> None:
    stranger = Authority(guarded.directory, "stranger")
    good = clients.certificate("bridge")
    expired = clients.certificate("bridge", not_after=datetime.now(UTC) - timedelta(days=1))
    ca, certificate = {
        "wrong ca": (stranger.ca, good),
        "expired certificate": (servers.ca, expired),
        "stranger's certificate": (servers.ca, stranger.certificate("bridge")),
        "no certificate": (servers.ca, None),
        "no tls": ("", None),
    }[fault]
    key = "dt_" + "0" * 24
    refused = guarded.run("authsvc", "validate", stdin=key, **command_variables(ca, certificate))
    assert (refused.returncode, refused.stdout) == (3, "")
    check_line(refused.stderr, line.format(ca="AUTHSVC_CA", certificate="AUTHSVC_CLIENT_CERT"))
    assert refused.stderr.count("\n") == 1

    bridge = await guarded.bridge(**bridge_variables(ca, certificate))
    answer = await post(bridge.address, key)
    assert (answer.status, answer.json) == (503, {"error": "Key service unavailable"})
    assert (await get(bridge.address, "/ready")).status == 503
    check_line(bridge.stderr, line.format(ca="HTTPBRIDGE_KEY_SERVICE_CA", certificate="HTTPBRIDGE_KEY_SERVICE_CERT"))


def check_line(text: str, pattern: str) -> None:
    assert [one for one in text.splitlines() if re.search(pattern, one)], f"{pattern} is in no line of: {text}"


@pytest.mark.parametrize(
    ("name", "variables", "named"),
    [
        ("authsvc", {"AUTHSVC_LISTEN": "0.0.0.0:0"}, "AUTHSVC_ALLOW_INSECURE"),
        ("httpbridge", {"HTTPBRIDGE_LISTEN": "0.0.0.0:0"}, "HTTPBRIDGE_ALLOW_INSECURE"),
        ("httpbridge", {"HTTPBRIDGE_KEY_SERVICE": "192.0.2.1:50051"}, "HTTPBRIDGE_ALLOW_INSECURE"),
        ("authsvc", {"AUTHSVC_TLS_CERT": "missing.pem", "AUTHSVC_TLS_KEY": "missing.key"}, "AUTHSVC_TLS_CERT"),
        ("httpbridge", {"HTTPBRIDGE_TLS_CERT": "missing.pem", "HTTPBRIDGE_TLS_KEY": "m"}, "HTTPBRIDGE_TLS_CERT"),
        ("authsvc", {"AUTHSVC_LISTEN": "somewhere"}, "AUTHSVC_LISTEN"),
        ("httpbridge", {"HTTPBRIDGE_RATE_LIMIT_PER_MINUTE": "many"}, "HTTPBRIDGE_RATE_LIMIT_PER_MINUTE"),
    ],
)
def test_an_unsafe_or_wrong_configuration_stops_the_start_with_its_name(
    system: System, name: str, variables: dict[str, str], named: str
) -> None:
    refused = system.run(name, "serve", **variables)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert named in refused.stderr
    assert refused.stderr.count("\n") == 1

"""The key service's TLS: which versions it speaks, and what it says of files that cannot be used."""

import asyncio
import ssl
import warnings
from pathlib import Path

import pytest

from authsvc.runtime.environment import ConfigurationError
from tests.authsvc.conftest import running
from tests.e2e.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def variables(authority: Authority) -> dict[str, str]:
    """Configure mutual TLS."""
    certificate, key = authority.certificate("127.0.0.1")
    return {"AUTHSVC_TLS_CERT": certificate, "AUTHSVC_TLS_KEY": key, "AUTHSVC_TLS_CLIENT_CA": authority.ca}


def context_of(authority: Authority, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = authority.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")  # what TLS 1.1 has is switched off otherwise
    context.set_alpn_protocols(["h2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize(
    ("version", "is_spoken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_tls_is_1_2_or_later(
    tmp_path: Path, authority: Authority, variables: dict[str, str], version: ssl.TLSVersion, is_spoken: bool
) -> None:
    del variables["AUTHSVC_TLS_CLIENT_CA"]
    context = context_of(authority, version)
    async with running(tmp_path / "state", **variables) as service:
        connecting = asyncio.open_connection(service.address.host, service.address.port, ssl=context)
        if is_spoken:
            _, writer = await connecting
            assert writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
            writer.transport.abort()
        else:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await connecting


@pytest.mark.parametrize("variable", ["AUTHSVC_TLS_CERT", "AUTHSVC_TLS_KEY", "AUTHSVC_TLS_CLIENT_CA"])
@pytest.mark.parametrize("content", [None, b"", b"junk", b"-----BEGIN CERTIFICATE-----\njunk\n"])
async def test_a_file_that_cannot_be_used_stops_the_start_with_its_variable(
    tmp_path: Path, variables: dict[str, str], variable: str, content: bytes | None
) -> None:
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        async with running(tmp_path / "state", **variables | {variable: str(path)}):
            pass
    assert variable in str(caught.value).partition(str(path))[0]
    assert "AUTHSVC_LISTEN" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_key_of_another_certificate_stops_the_start(
    tmp_path: Path, authority: Authority, variables: dict[str, str]
) -> None:
    variables["AUTHSVC_TLS_KEY"] = authority.certificate("another")[1]
    with pytest.raises(ConfigurationError, match=r"AUTHSVC_TLS_CERT, AUTHSVC_TLS_KEY: .*key values mismatch"):
        async with running(tmp_path / "state", **variables):
            pass

"""Why the key service cannot be reached, in one line for the operator.

gRPC reports most causes as the same UNAVAILABLE, so after a failure the connection
is tried once more with Python's own sockets and `ssl`, whose errors are precise.
Called by `key_client` and by the service's own command line.
"""

import asyncio
import socket
import ssl

from authsvc.client.channel import ClientTls
from authsvc.runtime.environment import Address, ConfigurationError

# RFC 9113 section 3.4: a client's first bytes, the preface and an empty SETTINGS frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


async def diagnose(address: Address, tls: ClientTls | None, timeout_seconds: float) -> str | None:
    """Return what is wrong, or None when a connection can be made. Takes at most `timeout_seconds`."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await (_diagnose_plaintext(address) if tls is None else _diagnose_tls(address, tls))
    except TimeoutError:
        return f"{address} did not answer within {timeout_seconds:g} s"
    except ConfigurationError as error:
        return str(error)
    except (socket.gaierror, UnicodeError):  # the latter for what cannot be a host name
        return f"{address}: the host is not known"
    except ConnectionRefusedError:
        return f"{address} refuses connections: is the key service running?"
    except OSError as error:
        return f"{address}: {error.strerror or type(error).__name__}"


async def _diagnose_plaintext(address: Address) -> str | None:
    first = await _first_byte(address, None)
    if first in (b"", b"\x15"):  # closed, or a TLS alert
        return f"{address} ends connections without TLS: it may expect TLS, and no CA is configured"
    return _diagnose_protocol(address, first)


def _diagnose_protocol(address: Address, first_byte: bytes) -> str | None:
    # A server begins with SETTINGS (RFC 9113 section 3.4), of far fewer than 65,536 bytes, and a frame with its length.
    if first_byte == b"\0":
        return None
    return f"{address} does not speak gRPC: is it the bridge's address, or another service's?"


async def _diagnose_tls(address: Address, tls: ClientTls) -> str | None:
    context = tls.context()
    try:
        if first := await _first_byte(address, context):
            return _diagnose_protocol(address, first)
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {address} is not accepted: {error.verify_message.rstrip('.')} ({_ca(tls)})"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return f"{address} does not speak TLS"
        if "ALERT" not in (error.reason or ""):
            return f"TLS with {address} failed: {_words(error)}"
        return _diagnose_refusal(address, tls, _words(error))
    except ConnectionResetError:
        pass
    # gRPC's servers close without a TLS alert when they do not accept a client's certificate; with TLS 1.3 that is
    # after our side of the handshake is done.
    return _diagnose_refusal(address, tls, "it closes the connection")


def _diagnose_refusal(address: Address, tls: ClientTls, symptom: str) -> str:
    if tls.certificate is None:
        return f"{address} demands a client certificate ({symptom}): set {tls.variables[1]} and {tls.variables[2]}"
    fault = _fault_of_own_certificate(tls) or f"{symptom}; is it signed by the CA that the key service expects?"
    return f"{address} does not accept our client certificate: {fault} ({tls.variables[1]}={tls.certificate})"


def _fault_of_own_certificate(tls: ClientTls) -> str | None:
    """Return why no server would accept our certificate, such as that it has expired.

    `ssl` has no public parser of certificates, but it verifies them: both ends of a
    handshake in memory present ours, and the server's end trusts just that one.
    """
    assert tls.certificate is not None  # noqa: S101 - for the type checker
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server.load_verify_locations(tls.certificate)
    for context in (client, server):
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # the server verifies before the client is done
        context.load_cert_chain(tls.certificate, tls.key, password="")  # rather fail than ask
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:  # a full handshake is two round trips
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except ssl.SSLError as error:
            return _words(error)
    return None


async def _first_byte(address: Address, context: ssl.SSLContext | None) -> bytes:
    """Connect, greet, and return the first byte of the answer: nothing when the other side closes."""
    name = address.host if context is not None else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=name)
    try:
        writer.write(_HTTP2_PREFACE)
        return await reader.read(1)
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def _ca(tls: ClientTls) -> str:
    return f"{tls.variables[0]}={tls.ca}" if tls.ca else f"{tls.variables[0]} is not set"


def _words(error: ssl.SSLError) -> str:
    return (error.reason or "unknown error").replace("_", " ").lower()

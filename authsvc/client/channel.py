"""The gRPC channel to the key service: TLS, the caller's token, how it reconnects, and why it cannot."""

import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import grpc

from authsvc.client.verdicts import KeyServiceUnavailableError
from authsvc.runtime.environment import Address, ConfigurationError, Secret, Token
from authsvc.runtime.private_files import read_private

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

_T = TypeVar("_T")

_OPTIONS: tuple[tuple[str, int], ...] = (
    # After an outage the next attempt is at most a second away; gRPC's own bound is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # despite its name: how long one attempt to connect may take
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A connection whose other end vanished is given up 5 s after something was sent: gRPC makes the keepalive timeout
    # the socket's TCP_USER_TIMEOUT as well. One whose packets are acknowledged, by a proxy say, but not answered, 5 s
    # after a ping: gRPC would otherwise wait a minute for that, whatever the keepalive timeout says.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Channels of one process would otherwise share connections, and with them the back-off of an older channel.
    ("grpc.use_local_subchannel_pool", 1),
    # Keys and tokens go to the address that was configured, never to a proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
)

_WORDS = {
    "Connection refused": "{} refuses connections: is the key service running?",
    "timed out": "{} did not answer in time",
    "Failed parsing HTTP/2": "{} does not speak gRPC: is it the bridge's address, or another service's?",
    "WRONG_VERSION_NUMBER": "{} does not speak TLS",
    "HTTP_REQUEST": "{} does not speak TLS",
    "Hostname Verification Check failed": "the certificate of {} is not accepted: it is for another host",
}
_CLOSED = ("Socket closed", "reset by peer", "ALERT")
"""gRPC's servers close without a TLS alert when they do not accept a client's certificate; others send one."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The files of a TLS client, read anew for each channel, so that renewed ones are found without a restart."""

    ca: Path | None = None
    """Who signs the key service's certificate; None: the authorities that gRPC ships."""
    certificate: Path | None = None
    """Ours, for a service that asks for client certificates, followed by its chain."""
    key: Path | None = None
    variables: tuple[str, str, str] = ("CA", "CLIENT_CERT", "CLIENT_KEY")
    """What the operator calls the three, for messages."""

    def read(self) -> list[bytes | None]:
        """Return what is in the files, CA, certificate and key; raise ConfigurationError naming one that is wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gRPC takes any bytes, and fails without saying why
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except OSError as error:  # SSLError is one
                raise ConfigurationError(f"{self.variables[0]}: {_why(self.ca, error)}") from None
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError(f"{self.variables[1]} and {self.variables[2]} go together")
        if self.certificate is not None and self.key is not None:
            load_certificate(context, self.certificate, self.key, self.variables[1:])
        try:
            return [path.read_bytes() if path else None for path in (self.ca, self.certificate, self.key)]
        except OSError as error:
            raise ConfigurationError(f"{', '.join(self.variables)}: {_reason(error)}") from None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials of a channel; raise ConfigurationError as `read` does."""
        ca, certificate, key = self.read()
        return grpc.ssl_channel_credentials(ca, key, certificate)


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path, variables: tuple[str, str]) -> None:
    """Have a context present a certificate; raise ConfigurationError naming the file that is wrong."""
    for variable, path in zip(variables, (certificate, key), strict=True):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{variable}: {_why(path, error)}") from None
    try:
        context.load_cert_chain(certificate, key, password="")  # rather fail than ask the terminal
    except OSError as error:
        raise ConfigurationError(
            f"{variables[0]}, {variables[1]}: {certificate} and {key} are not a certificate and its "
            f"unencrypted key in PEM form ({_reason(error)})"
        ) from None


class TokenSource:
    """Where the bearer token comes from: here, from the configuration."""

    def __init__(self, token: Secret) -> None:
        self._configured = token

    def read(self) -> Secret:
        """Return the token; raise KeyServiceUnavailableError when there is none now."""
        return self._configured

    def forget(self) -> None:
        """Look again at the next `read`: a call failed, so the service may have been replaced, and its token too."""


class TokenFile(TokenSource):
    """A token that the key service keeps in a file, which may appear after us and be replaced."""

    def __init__(self, path: Path, *, is_private: bool = False) -> None:
        """With `is_private` a file that others can read or write holds no token: it is one of the state directory."""
        self._path = path
        self._is_private = is_private
        self._token: Secret | None = None

    def read(self) -> Secret:
        if self._token is not None:
            return self._token
        try:
            text = read_private(self._path) if self._is_private else self._path.read_text("utf-8", "replace")
            self._token = Token.parse(text)
        except FileNotFoundError:
            reason = f"{self._path} does not exist; the key service writes it at its first start"
        except OSError as error:
            reason = _why(self._path, error)
        except ValueError as error:
            reason = f"{self._path} holds something else: {error}"
        else:
            return self._token
        raise KeyServiceUnavailableError(f"there is no token: {reason}")

    def forget(self) -> None:
        self._token = None


def authorization(token: Secret) -> Metadata:
    """Return the metadata that presents a token."""
    return (("authorization", f"Bearer {token.reveal()}"),)


async def call_with_token(source: TokenSource, call: Callable[[Metadata], Awaitable[_T]]) -> _T:
    """Make a call, and once more if its token is refused and was replaced; raise AioRpcError, and as `read`."""
    token = source.read()
    try:
        return await call(authorization(token))
    except grpc.aio.AioRpcError as error:
        source.forget()
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED or (new := source.read()).reveal() == token.reveal():
            raise
    try:
        return await call(authorization(new))
    except grpc.aio.AioRpcError:
        source.forget()
        raise


def naming(caller: str) -> Metadata:
    """Return the metadata that says for the audit trail who asks; without a name, the service puts the role there."""
    if not caller:
        return ()
    # gRPC carries printable ASCII, or bytes under names that end in -bin.
    if caller.isascii() and caller.isprintable():
        return (("x-authsvc-caller", caller),)
    return (("x-authsvc-caller-bin", caller.encode(errors="replace")),)


def open_channel(address: Address, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Return a channel, which connects at its first call, in this event loop; raise ConfigurationError for a file."""
    if tls is None:
        return grpc.aio.insecure_channel(str(address), options=_OPTIONS)
    return grpc.aio.secure_channel(str(address), tls.credentials(), options=_OPTIONS)


def connection_fault(details: str, address: Address, tls: ClientTls | None) -> str | None:
    """Return in one line why no connection came about; None for the details of a call that may have been sent."""
    if details.startswith("errors resolving "):
        return f"{address}: the host is not known"
    failed, _, reason = details.partition("; last error: ")
    if not failed.startswith("failed to connect to "):
        return None
    for theirs, ours in _WORDS.items():
        if theirs in reason:
            return ours.format(address)
    if tls is not None and (match := re.search("CERTIFICATE_VERIFY_FAILED: ([^:]+)", reason)):
        ca = f"{tls.variables[0]}={tls.ca}" if tls.ca else f"{tls.variables[0]} is not set"
        return f"the certificate of {address} is not accepted: {match[1]} ({ca})"
    if any(closed in reason for closed in _CLOSED):
        return _closed_fault(address, tls)
    return f"{address}: {reason or details}"


def _closed_fault(address: Address, tls: ClientTls | None) -> str:
    if tls is None:
        return f"{address} ends connections without TLS: it may expect TLS, and no CA is configured"
    _, certificate, key = tls.variables
    if tls.certificate is None:
        return f"{address} demands a client certificate (it closes the connection): set {certificate} and {key}"
    return (
        f"{address} does not accept our client certificate ({certificate}={tls.certificate}): has it expired, "
        "and is it signed by the CA that the key service expects?"
    )


def _why(path: Path, error: OSError) -> str:
    return f"{path}: {_reason(error)}"


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return error.strerror or type(error).__name__

"""The bridge's environment, read once: `HTTPBRIDGE_…`. Every option is documented in docs/configuration.md.

Called by `cli`; `app` gets the result.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import msgspec

from authsvc.runtime.database_url import sqlite_url
from authsvc.runtime.environment import Address, ConfigurationError, ListenAddress, Secret, Token, read
from authsvc.runtime.logging import LogFormat, LogLevel
from authsvc.runtime.networks import Networks
from authsvc.runtime.private_files import check_files, check_private, make_directory, readable_by_all

PREFIX = "HTTPBRIDGE_"
BRIDGE_TOKEN_FILE = "bridge-token"  # noqa: S105 - a file's name, where the key service leaves it
ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 - likewise
DASHBOARD_TOKEN_FILE = "dashboard-token"  # noqa: S105 - a file's name

_FILES = ("tls_cert", "tls_key", "key_service_ca", "key_service_cert", "key_service_cert_key")

_PUBLIC_URL = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?")

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The variables, in lower case and without their prefix."""

    listen: ListenAddress = ListenAddress("127.0.0.1", 8080)
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    state_dir: Path = Path("var")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_insecure: bool = False
    trusted_proxies: Networks = Networks()
    keepalive_seconds: Annotated[float, msgspec.Meta(ge=1, le=7200)] = 75
    key_service: Address = Address("127.0.0.1", 50051)
    key_service_token: Token | None = None
    key_service_ca: Path | None = None
    key_service_cert: Path | None = None
    key_service_cert_key: Path | None = None
    log_store_url: Secret | None = None
    rate_limit_per_minute: _Positive = 5000
    bytes_per_minute: _Positive = 300 * 1024 * 1024
    cache_ttl_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 60
    body_bytes_max: _Positive = 5 * 1024 * 1024
    dashboard_listen: ListenAddress = ListenAddress("127.0.0.1", 8081)
    dashboard_token: Token | None = None
    admin_token: Token | None = None
    public_url: str | None = None
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.CONSOLE

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables; raise ConfigurationError naming the first bad one."""
        config = read(cls, PREFIX, environ)
        for one, other in (("tls_cert", "tls_key"), ("key_service_cert", "key_service_cert_key")):
            if (getattr(config, one) is None) != (getattr(config, other) is None):
                raise ConfigurationError(f"{PREFIX}{one.upper()} and {PREFIX}{other.upper()} go together")
        if config.key_service_cert is not None and config.key_service_ca is None:
            raise ConfigurationError("HTTPBRIDGE_KEY_SERVICE_CERT needs HTTPBRIDGE_KEY_SERVICE_CA")
        if config.public_url is not None and _PUBLIC_URL.fullmatch(config.public_url) is None:
            raise ConfigurationError("HTTPBRIDGE_PUBLIC_URL: expected http:// or https://, a host, and no query")
        check_files((PREFIX + name.upper(), getattr(config, name)) for name in _FILES)
        return config

    def keys_readable_by_all(self) -> list[tuple[str, Path]]:
        """Return the private keys that everybody can read, after their variables."""
        names = ("tls_key", "key_service_cert_key")
        return readable_by_all((PREFIX + name.upper(), getattr(self, name)) for name in names)

    def clients_url(self) -> str:
        """Return where clients reach the bridge, without a slash at the end: HTTPBRIDGE_PUBLIC_URL, or its listener."""
        return (self.public_url or self._url(self.listen)).rstrip("/")

    def dashboard_url(self) -> str:
        """Return where the dashboard listens, as a URL."""
        return self._url(self.dashboard_listen)

    def _url(self, address: ListenAddress) -> str:
        return f"{'https' if self.tls_cert else 'http'}://{address.to_connect()}"

    def store_url(self) -> str:
        """Return the log store's URL: the one that is set, or that of the file `logs.db` in the state directory."""
        if self.log_store_url:
            return self.log_store_url.reveal()
        return sqlite_url(self.state_dir.absolute() / "logs.db")

    @property
    def store_variable(self) -> str:
        """The variable that says where the log store is, for messages."""
        return "HTTPBRIDGE_LOG_STORE_URL" if self.log_store_url else "HTTPBRIDGE_STATE_DIR"

    def check_exposure(self) -> None:
        """Raise ConfigurationError where keys would cross a network in the clear."""
        self._check_exposure("HTTPBRIDGE_LISTEN", self.listen)

    def check_dashboard_exposure(self) -> None:
        """Raise ConfigurationError where a network would see the dashboard in the clear, or nobody chose its token."""
        self._check_exposure("HTTPBRIDGE_DASHBOARD_LISTEN", self.dashboard_listen)
        is_kept = self.dashboard_token is not None or (self.state_dir / DASHBOARD_TOKEN_FILE).exists()
        if not (self.dashboard_listen.is_loopback or self.allow_insecure or is_kept):
            raise ConfigurationError(
                f"HTTPBRIDGE_DASHBOARD_LISTEN={self.dashboard_listen} is not loopback: set HTTPBRIDGE_DASHBOARD_TOKEN"
            )

    def _check_exposure(self, variable: str, listen: Address) -> None:
        if self.allow_insecure:
            return
        switch = "or HTTPBRIDGE_ALLOW_INSECURE=true if the network in between is trusted"
        if not listen.is_loopback and self.tls_cert is None:
            raise ConfigurationError(
                f"{variable}={listen} is not loopback: set HTTPBRIDGE_TLS_CERT and HTTPBRIDGE_TLS_KEY, " + switch
            )
        if not self.key_service.is_loopback and self.key_service_ca is None:
            raise ConfigurationError(
                f"HTTPBRIDGE_KEY_SERVICE={self.key_service} is not loopback: set HTTPBRIDGE_KEY_SERVICE_CA, " + switch
            )


def make_state_dir(config: Config) -> None:
    """Make the directory, if the logs go there and there is none.

    Raises ConfigurationError when that fails, and when others can write what is used of it, or read the token.
    """
    is_token_kept = config.key_service_token is None and config.state_dir.exists()
    if config.log_store_url is None or is_token_kept:
        make_directory(config.state_dir, "HTTPBRIDGE_STATE_DIR")
    if is_token_kept:
        check_private(config.state_dir / BRIDGE_TOKEN_FILE)

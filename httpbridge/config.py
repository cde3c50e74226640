"""The bridge's environment, read once: `HTTPBRIDGE_…`. Every option is documented in docs/configuration.md."""

import re
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from authsvc.runtime.database_url import sqlite_url
from authsvc.runtime.environment import Address, ConfigurationError, ListenAddress, Secret, Token
from authsvc.runtime.private_files import check_private
from authsvc.runtime.service_config import ServiceConfig

BRIDGE_TOKEN_FILE = "bridge-token"  # noqa: S105 - a file's name, where the key service leaves it
ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 - likewise
DASHBOARD_TOKEN_FILE = "dashboard-token"  # noqa: S105 - a file's name

_PUBLIC_URL = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?")

RETENTION_DAYS_MAX = 36_500

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Config(ServiceConfig, frozen=True, kw_only=True):
    """The bridge's variables."""

    PREFIX: ClassVar = "HTTPBRIDGE_"
    CERTIFICATES: ClassVar = (("tls_cert", "tls_key"), ("key_service_cert", "key_service_cert_key"))

    listen: ListenAddress = ListenAddress("127.0.0.1", 8080)
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
    retention_days: Annotated[int, msgspec.Meta(ge=0, le=RETENTION_DAYS_MAX)] = 0
    store_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    dashboard_listen: ListenAddress = ListenAddress("127.0.0.1", 8081)
    dashboard_token: Token | None = None
    admin_token: Token | None = None
    public_url: str | None = None

    def check(self) -> None:
        """Raise ConfigurationError for values that do not go together, and for a URL that is none."""
        if self.key_service_cert is not None and self.key_service_ca is None:
            raise ConfigurationError("HTTPBRIDGE_KEY_SERVICE_CERT needs HTTPBRIDGE_KEY_SERVICE_CA")
        if self.public_url is not None and _PUBLIC_URL.fullmatch(self.public_url) is None:
            raise ConfigurationError("HTTPBRIDGE_PUBLIC_URL: expected http:// or https://, a host, and no query")

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

    def make_store_dir(self) -> None:
        """Make the state directory, if the logs go there and there is none.

        Raises ConfigurationError when that fails, and when others can write what is used of it, or read the token.
        """
        is_token_kept = self.key_service_token is None and self.state_dir.exists()
        if self.log_store_url is None or is_token_kept:
            self.make_state_dir()
        if is_token_kept:
            check_private(self.state_dir / BRIDGE_TOKEN_FILE)

    def check_exposure(self) -> None:
        """Raise ConfigurationError where keys would cross a network in the clear."""
        self._check_exposure("HTTPBRIDGE_LISTEN", self.listen)

    def check_dashboard_exposure(self) -> None:
        """Raise ConfigurationError where a network would see the dashboard in the clear, or nobody chose its token."""
        self._check_exposure("HTTPBRIDGE_DASHBOARD_LISTEN", self.dashboard_listen)
        is_kept = self.dashboard_token is not None or (self.state_dir / DASHBOARD_TOKEN_FILE).exists()
        missing = [] if is_kept else ["HTTPBRIDGE_DASHBOARD_TOKEN"]
        self.check_exposed("HTTPBRIDGE_DASHBOARD_LISTEN", self.dashboard_listen, missing)

    def _check_exposure(self, variable: str, listen: Address) -> None:
        self.check_exposed(variable, listen, [] if self.tls_cert else ["HTTPBRIDGE_TLS_CERT and HTTPBRIDGE_TLS_KEY"])
        missing = [] if self.key_service_ca else ["HTTPBRIDGE_KEY_SERVICE_CA"]
        self.check_exposed("HTTPBRIDGE_KEY_SERVICE", self.key_service, missing)

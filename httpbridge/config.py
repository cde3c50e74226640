"""The bridge's environment, read once: `HTTPBRIDGE_…`. Every option is documented in docs/configuration.md.

Called by `cli`; `app` gets the result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import msgspec

from authsvc.client.environment import Address, ConfigurationError, Secret, Token, read
from authsvc.client.event_log import LogFormat, LogLevel

PREFIX = "HTTPBRIDGE_"
BRIDGE_TOKEN_FILE = "bridge-token"  # noqa: S105 - a file's name, where the key service leaves it

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The variables, in lower case and without their prefix."""

    listen: Address = Address("127.0.0.1", 8080)
    state_dir: Path = Path("var")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_insecure: bool = False
    key_service: Address = Address("127.0.0.1", 50051)
    key_service_token: Token | None = None
    key_service_ca: Path | None = None
    key_service_cert: Path | None = None
    key_service_cert_key: Path | None = None
    log_store_url: Secret | None = None
    rate_limit_per_minute: _Positive = 5000
    cache_ttl_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 60
    body_bytes_max: _Positive = 5 * 1024 * 1024
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
        return config

    def sink_url(self) -> str:
        """Return the log store's URL: the one that is set, or the file `logs.db` in the state folder."""
        return self.log_store_url.reveal() if self.log_store_url else f"sqlite:///{self.state_dir / 'logs.db'}"

    def check_exposure(self) -> None:
        """Raise ConfigurationError where keys would cross a network in the clear."""
        if self.allow_insecure:
            return
        switch = "or HTTPBRIDGE_ALLOW_INSECURE=true if the network in between is trusted"
        if not self.listen.is_loopback and self.tls_cert is None:
            raise ConfigurationError(
                f"HTTPBRIDGE_LISTEN={self.listen} is not loopback: set HTTPBRIDGE_TLS_CERT and HTTPBRIDGE_TLS_KEY, "
                + switch
            )
        if not self.key_service.is_loopback and self.key_service_ca is None:
            raise ConfigurationError(
                f"HTTPBRIDGE_KEY_SERVICE={self.key_service} is not loopback: set HTTPBRIDGE_KEY_SERVICE_CA, " + switch
            )

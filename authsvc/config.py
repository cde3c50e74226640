"""The service's environment, read once: `AUTHSVC_…`. Every option is documented in docs/configuration.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

import msgspec

from authsvc.runtime.database_url import sqlite_url
from authsvc.runtime.environment import Address, ConfigurationError, ListenAddress, Secret, Token
from authsvc.runtime.private_files import load_or_create_token
from authsvc.runtime.service_config import ServiceConfig

ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 - a file's name
BRIDGE_TOKEN_FILE = "bridge-token"  # noqa: S105 - a file's name

_MARGIN_SECONDS_MIN = 0.1  # clocks are set by so much without anybody noticing
_MARGIN_OF_LEASE_MIN = 0.001  # quartz drifts by a tenth of that


class Config(ServiceConfig, frozen=True, kw_only=True):
    """The key service's variables. The last four are the command line's side."""

    PREFIX: ClassVar = "AUTHSVC_"
    CERTIFICATES: ClassVar = (("tls_cert", "tls_key"), ("client_cert", "client_key"))

    listen: ListenAddress = ListenAddress("127.0.0.1", 50051)
    database_url: Secret | None = None
    admin_token: Token | None = None
    bridge_token: Token | None = None
    reflection: bool | None = None
    tls_client_ca: Path | None = None
    lease_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60
    lease_margin_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5
    address: Address | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    def check(self) -> None:
        """Raise ConfigurationError for values that do not go together."""
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigurationError("AUTHSVC_TLS_CLIENT_CA needs AUTHSVC_TLS_CERT and AUTHSVC_TLS_KEY")
        if self.client_cert is not None and self.ca is None:
            raise ConfigurationError("AUTHSVC_CLIENT_CERT needs AUTHSVC_CA")

    def store_url(self) -> str:
        """Return the database's URL: the one that is set, or that of the file `authsvc.db` in the state directory."""
        if self.database_url:
            return self.database_url.reveal()
        return sqlite_url(self.state_dir.absolute() / "authsvc.db")

    @property
    def store_variable(self) -> str:
        """The variable that says where the database is, for messages."""
        return "AUTHSVC_DATABASE_URL" if self.database_url else "AUTHSVC_STATE_DIR"

    @property
    def is_margin_thin(self) -> bool:
        """Whether the margin is less than what ordinary clocks need: then a revoked key may live on (rule 12)."""
        return self.lease_margin_seconds < max(_MARGIN_SECONDS_MIN, self.lease_seconds * _MARGIN_OF_LEASE_MIN)

    @property
    def has_reflection(self) -> bool:
        """Whether callers can ask for the schema, without a token: unless said otherwise, on this machine alone."""
        return self.listen.is_loopback if self.reflection is None else self.reflection

    def service_address(self) -> Address:
        """Return where the command line finds the service: where it listens, unless said otherwise."""
        return self.address or self.listen.to_connect()

    def check_exposure(self) -> None:
        """Raise ConfigurationError for an address that others reach, without TLS or tokens of one's own choice."""
        missing = [] if self.tls_cert else ["AUTHSVC_TLS_CERT and AUTHSVC_TLS_KEY"]
        for token, name in ((self.admin_token, ADMIN_TOKEN_FILE), (self.bridge_token, BRIDGE_TOKEN_FILE)):
            if token is None and not (self.state_dir / name).exists():
                missing.append(token_variable(name))
        self.check_exposed("AUTHSVC_LISTEN", self.listen, missing)

    def check_connection(self) -> None:
        """Raise ConfigurationError for an address without a port, or to which token and keys would go in the clear."""
        address = self.service_address()
        variable = "AUTHSVC_ADDRESS" if self.address else "AUTHSVC_LISTEN"
        if address.port == 0:
            raise ConfigurationError(
                f"{variable}={address} is no port to connect to: set AUTHSVC_ADDRESS to the address that the key "
                "service printed at its start"
            )
        self.check_exposed(variable, address, [] if self.ca else ["AUTHSVC_CA to speak TLS with it"])


@dataclass(frozen=True, slots=True)
class Tokens:
    """What callers present: one token a role."""

    admin: Token
    bridge: Token

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the tokens that are set, or are kept in the state directory, where a missing one is generated.

        Raises ConfigurationError for a file that holds something else, or two tokens that are the same.
        """
        tokens = cls(
            admin=config.admin_token or load_or_create_token(config.state_dir / ADMIN_TOKEN_FILE),
            bridge=config.bridge_token or load_or_create_token(config.state_dir / BRIDGE_TOKEN_FILE),
        )
        if tokens.admin.reveal() == tokens.bridge.reveal():
            raise ConfigurationError("AUTHSVC_BRIDGE_TOKEN is the same as AUTHSVC_ADMIN_TOKEN: a bridge would be admin")
        return tokens


def token_variable(file_name: str) -> str:
    """Return the variable that holds a token instead of the file in the state directory."""
    return Config.variable(file_name.replace("-", "_"))

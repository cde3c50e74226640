"""What the environments of both services have: certificates, the state directory, whom to trust, what to log."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import msgspec

from authsvc.runtime.environment import Address, ConfigurationError, read
from authsvc.runtime.logging import LogFormat, LogLevel
from authsvc.runtime.networks import Networks
from authsvc.runtime.private_files import check_files, make_directory, readable_by_all


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A service's variables, in lower case and without their prefix. Those that hold paths are files of TLS."""

    PREFIX: ClassVar[str]
    CERTIFICATES: ClassVar[Sequence[tuple[str, str]]]
    """The fields with certificates, each with that of its key."""

    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    state_dir: Path = Path("var")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_insecure: bool = False
    trusted_proxies: Networks = Networks()
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.CONSOLE

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables; raise ConfigurationError naming the first bad one."""
        config = read(cls, cls.PREFIX, environ)
        for one, other in cls.CERTIFICATES:
            if (getattr(config, one) is None) != (getattr(config, other) is None):
                raise ConfigurationError(f"{cls.variable(one)} and {cls.variable(other)} go together")
        config.check()
        check_files(config._files())
        return config

    @classmethod
    def variable(cls, field: str) -> str:
        return cls.PREFIX + field.upper()

    def check(self) -> None:
        """Raise ConfigurationError for values that do not go together."""

    def keys_readable_by_all(self) -> list[tuple[str, Path]]:
        """Return the private keys that everybody can read, after their variables."""
        return readable_by_all((variable, path) for variable, path in self._files() if variable.endswith("_KEY"))

    def _files(self) -> Iterator[tuple[str, Path]]:
        for field in self.__struct_fields__:
            if field != "state_dir" and isinstance(path := getattr(self, field), Path):
                yield self.variable(field), path

    def make_state_dir(self) -> None:
        """Make the state directory, readable to this user only, if there is none; raise ConfigurationError."""
        make_directory(self.state_dir, self.variable("state_dir"))

    def check_exposed(self, variable: str, address: Address, missing: Sequence[str]) -> None:
        """Raise ConfigurationError for an address that others reach while there is something missing to protect it."""
        if missing and not (address.is_loopback or self.allow_insecure):
            raise ConfigurationError(
                f"{variable}={address} is not loopback: set {', '.join(missing)}, "
                f"or {self.PREFIX}ALLOW_INSECURE=true if the network in between is trusted"
            )

"""Who calls: the role that a token has, and the address that a connection, or a trusted proxy, has."""

import hmac
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from authsvc.config import Tokens
from authsvc.runtime.environment import Secret
from authsvc.runtime.networks import Networks, client_address, forwarded_for


class Role(StrEnum):
    """What a token lets its bearer call."""

    BRIDGE = "bridge"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a call comes from."""

    connection: str
    """As gRPC names it: `ipv4:192.0.2.1:50000`, `ipv6:%5B2001:db8::1%5D:50000`."""
    address: str
    """The connection's, or where that is a trusted proxy, of whom it speaks for."""
    is_proxied: bool
    """Others share the connection."""


class Callers:
    """Tells callers' roles and addresses."""

    def __init__(self, tokens: Tokens, trusted_proxies: Networks) -> None:
        self._authorizations = {
            Role.ADMIN: _authorization(tokens.admin),
            Role.BRIDGE: _authorization(tokens.bridge),
        }
        self._trusted_proxies = trusted_proxies

    def role(self, context: Any) -> Role | None:
        """Return whose token the call with this context of gRPC's carries; None for nobody's."""
        presented = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        role = None
        if len(presented) == 1 and isinstance(presented[0], str):
            scheme, _, token = presented[0].partition(" ")
            text = f"{scheme.lower()} {token}".encode()
            for candidate, expected in self._authorizations.items():  # both, so that time tells nothing
                if hmac.compare_digest(text, expected):
                    role = candidate
        return role

    def caller(self, context: Any) -> Caller:
        """Return whom the call with this context of gRPC's comes from."""
        connection: str = context.peer()
        caller = _of_connection(connection)
        if caller.address not in self._trusted_proxies:
            return caller
        values: dict[str, list[str]] = {"x-forwarded-for": [], "forwarded": []}
        for key, value in context.invocation_metadata() or ():
            if key in values and isinstance(value, str):
                values[key].append(value)
        said = forwarded_for(values["x-forwarded-for"], values["forwarded"])
        return Caller(connection, client_address(caller.address, said, self._trusted_proxies), is_proxied=True)


@lru_cache(maxsize=16_384)  # more than there are connections
def _of_connection(connection: str) -> Caller:
    return Caller(connection, host_and_port(connection)[0], is_proxied=False)


def host_and_port(connection: str) -> tuple[str, str]:
    """Return the callers' end of a connection that gRPC names."""
    host, _, port = unquote(connection.partition(":")[2]).rpartition(":")
    return host.strip("[]"), port


def _authorization(token: Secret) -> bytes:
    return f"bearer {token.reveal()}".encode()

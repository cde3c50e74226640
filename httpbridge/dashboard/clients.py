"""Who sent a request, and to which of our addresses: as the connection says, or a trusted proxy."""

from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from aiohttp import hdrs, web

from authsvc.runtime.networks import Networks, client_address, without_port

_NAMES = ("For", "Proto", "Host")
_SCHEME_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a request, and how."""

    address: str
    """The last one that no trusted proxy has."""
    is_https: bool
    """Whether the browser speaks HTTPS, to us or to a trusted proxy."""
    host: str
    """What the browser calls us, in lower case, with a port unless that is the scheme's own; empty if unknown."""

    @property
    def name(self) -> str:
        return self.host if self.host.endswith("]") else self.host.rpartition(":")[0] or self.host

    @property
    def is_pinned(self) -> bool:
        """Whether browsers should come by HTTPS alone from now on: not to a name that every machine has."""
        return self.is_https and self.name != "localhost" and not self.name.endswith(".localhost")

    def cookie(self, name: str) -> str:
        """Return the name of a cookie of ours: with the port, as browsers send one host's cookies to all of its ports.

        Under HTTPS with the prefix that lets nobody else set it: neither another host of the domain nor plain HTTP.
        """
        _, _, port = self.host.rpartition("]")[2].partition(":")
        instance = f"_{port}" if port.isascii() and port.isdigit() else ""
        return f"{'__Host-' if self.is_https else ''}dashboard_{name}{instance}"

    def site(self, request: web.Request) -> Literal["ours", "another", "unknown"]:
        """Return whose page sent a request, as far as the browser says so.

        `same-origin` is its own comparison of the two addresses, which holds also where a proxy changed our name, or
        left its port out. Browsers send it under HTTPS and to this machine alone; else Origin is compared with Host.
        Where a proxy that is not trusted speaks HTTPS, our own pages are HTTPS and we do not know it.
        """
        site, origin = (request.headers.get(name) for name in ("Sec-Fetch-Site", hdrs.ORIGIN))
        if site == "same-origin":
            return "ours"
        ours = {f"https://{self.host}", f"{'https' if self.is_https else 'http'}://{self.host}"}
        if site not in (None, "none") or (origin is not None and origin.lower() not in ours):
            return "another"
        return "unknown" if site == "none" or origin is None else "ours"


CLIENT = web.RequestKey("client", Client)


def client_of(request: web.Request, trusted_proxies: Networks) -> Client:
    """Return who sent it. What anybody but a trusted proxy writes into these headers is not believed.

    X-Forwarded-… go before Forwarded, so a proxy has to set or remove both.
    """
    peer = request.remote or ""
    scheme, host = request.scheme, request.headers.get(hdrs.HOST, "")
    addresses: list[str] = []
    if peer in trusted_proxies:
        addresses, schemes, hosts = _forwarded(request)
        # Each proxy adds what it saw: what counts is what the outermost of ours added.
        proxies = 1 + len(list(takewhile(trusted_proxies.__contains__, reversed(addresses))))
        scheme = _added(schemes, proxies) or scheme
        host = _added(hosts, proxies) or host
    is_https = scheme.lower() == "https"
    host = host.lower().removesuffix(_SCHEME_PORTS["https" if is_https else "http"])
    return Client(client_address(peer, addresses, trusted_proxies), is_https, host)


def _forwarded(request: web.Request) -> tuple[list[str], list[str], list[str]]:
    """Return the addresses, schemes and hosts that proxies say they saw, each in the order of the proxies."""
    lists = [",".join(request.headers.getall(f"X-Forwarded-{name}", [])) for name in _NAMES]
    if any(lists):
        addresses, schemes, hosts = ([part.strip() for part in text.split(",")] if text else [] for text in lists)
    else:
        addresses, schemes, hosts = ([one.get(name.lower(), "") for one in request.forwarded] for name in _NAMES)
    return [without_port(address) for address in addresses], schemes, hosts


def _added(values: list[str], proxies: int) -> str:
    """Return what the outermost of so many proxies added; of fewer values, the first."""
    return values[max(0, len(values) - proxies)] if values else ""

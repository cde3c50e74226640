"""Who is at the other end: addresses, trusted proxies, and how many places one address may take. Pure."""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Self, TypeAlias

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_SUBSCRIBER_PREFIX = 64
"""For IPv6: the least that one subscriber gets (RFC 6177), who can use any address in it."""

_FREE_SHARE = 3 / 4
"""The part of the places that anybody may take. An address that has more than its share gets none of the rest."""

_ADDRESS_SHARE = 1 / 16
"""The part of the places that one address may have once the free ones are taken."""


def _ip(text: str) -> _IP | None:
    """Return the address, an IPv4 one also where it is mapped into IPv6; None for what is none, a UNIX socket say."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=16_384)  # asked for with each call
def address_group(text: str) -> str:
    """Return what is counted as one caller: an IPv4 address, the /64 of an IPv6 one, or the text as it is."""
    address = _ip(text)
    if address is None:
        return text
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _SUBSCRIBER_PREFIX), strict=False))


class Networks(tuple[_Network, ...]):
    """A list of networks, as CIDRs; empty by default. An address is in it that is in one of them."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read CIDRs and single addresses with commas or white space between; raise ValueError naming a bad one."""
        networks = []
        for word in text.replace(",", " ").split():
            try:
                networks.append(ipaddress.ip_network(word, strict=False))
            except ValueError:
                raise ValueError(f"expected networks such as 10.0.0.0/8, 2001:db8::/32; not {word!r}") from None
        return cls(networks)

    def __contains__(self, text: object) -> bool:
        address = _ip(str(text)) if self else None
        return address is not None and any(address in network for network in self)


def client_address(peer: str, forwarded_for: Sequence[str], trusted_proxies: Networks) -> str:
    """Return the address that a request comes from: the last one that is not a trusted proxy's.

    `peer` is the connection's, `forwarded_for` what X-Forwarded-For lists (or Forwarded's `for`), in its order. What
    anybody else sends in them is not believed: each is looked at only where the one after it is a trusted proxy.
    """
    address = peer
    for text in reversed(forwarded_for):
        if address not in trusted_proxies:
            break
        ip = _ip(text)
        if ip is None:
            break
        address = str(ip)  # without what may follow it as its zone
    return address


def forwarded_for(x_forwarded_for: Sequence[str], forwarded: Sequence[str]) -> list[str]:
    """Return the addresses that the values of these two headers list, without their ports, in order.

    X-Forwarded-For goes before Forwarded (RFC 7239), so a proxy has to set or remove both.
    """
    if x_forwarded_for:
        listed = ",".join(x_forwarded_for).split(",")
    else:
        elements = ",".join(forwarded).split(",")
        pairs = ([pair.strip().partition("=") for pair in element.split(";")] for element in elements)
        listed = [next((value for name, _, value in element if name.lower() == "for"), "") for element in pairs]
    return [without_port(text.strip().strip('"')).partition("%")[0] for text in listed]


def without_port(text: str) -> str:
    """Return the address in one of these headers without the port that may follow it, and without brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


class Places:
    """Counts who takes how many of a bounded number of places.

    An address is bounded once three quarters of them are taken, and a trusted proxy never: it speaks for many.
    """

    def __init__(self, places_max: int, trusted_proxies: Networks) -> None:
        self.places_max = places_max
        self.taken = 0
        self.free = int(places_max * _FREE_SHARE)
        """So many are anybody's."""
        self.of_address_max = max(1, int(places_max * _ADDRESS_SHARE))
        """So many may an address have when those are taken."""
        self._trusted_proxies = trusted_proxies
        self._of_addresses: Counter[str] = Counter()

    def has_room(self, address: str) -> bool:
        if self.taken < self.free:
            return True
        if self.taken >= self.places_max:
            return False
        return not self.has_share(address)

    def has_share(self, address: str) -> bool:
        """Return whether an address has as many as it may have once the free ones are taken."""
        return self.count(address) >= self.of_address_max and address not in self._trusted_proxies

    def take(self, address: str) -> bool:
        """Take a place, if there is room for the address; return whether there was."""
        if not self.has_room(address):
            return False
        self.taken += 1
        self._of_addresses[address_group(address)] += 1
        return True

    def release(self, address: str) -> None:
        group = address_group(address)
        self.taken -= 1
        self._of_addresses[group] -= 1
        if self._of_addresses[group] <= 0:
            del self._of_addresses[group]

    def count(self, address: str) -> int:
        return self._of_addresses.get(address_group(address), 0)

"""How many may hold leases: a place each, until its lease is over.

`watch` asks it before it renews a lease. All holders have the same token, and a mutation waits for each of them: so
they are bounded in all and by address. Each process counts those whose leases it renewed itself.
"""

from collections import OrderedDict
from collections.abc import Callable

import structlog

from authsvc.errors import TooManyHoldersError
from authsvc.runtime.networks import Networks, Places
from authsvc.runtime.tally import Tally

_log = structlog.get_logger("authsvc")


class Holders:
    """The holders of this process. One that released its lease counts on, so that nobody comes and goes without end."""

    def __init__(
        self, holders_max: int, trusted_proxies: Networks, lease_seconds: float, monotonic: Callable[[], float]
    ) -> None:
        """Take how long a lease lasts for those who wait for it, margin included."""
        self._places = Places(holders_max, trusted_proxies)
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._leases: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Address and end of each, by the holder's id; the one that ends first is first."""
        self._refused = Tally(monotonic, lambda **fields: _log.warning("holders_refused", **fields))

    def admit(self, holder_id: str, address: str) -> None:
        """Note that a holder is about to renew its lease; raise TooManyHoldersError for a new one too many."""
        now = self._monotonic()
        while self._leases and next(iter(self._leases.values()))[1] <= now:
            self._places.release(self._leases.popitem(last=False)[1][0])
        if (known := self._leases.get(holder_id)) is not None:
            address = known[0]
        elif not self._places.take(address):
            self._refused.add(address)
            raise TooManyHoldersError("there are too many holders already")
        self._leases[holder_id] = address, now + self._lease_seconds
        self._leases.move_to_end(holder_id)

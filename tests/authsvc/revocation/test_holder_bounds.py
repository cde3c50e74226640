"""How many holders of leases a process admits, in all and by address."""

import pytest

from authsvc.errors import TooManyHoldersError
from authsvc.revocation.lessor import Holders
from authsvc.runtime.networks import Networks


class Bounded:
    """Holders under a bound, and the time."""

    def __init__(self, holders_max: int, trusted: str = "") -> None:
        self.time = 100.0
        self._holders = Holders(holders_max, Networks.parse(trusted), 65.0, lambda: self.time)

    def admitted(self, address: str, *holder_ids: object) -> int:
        """Return how many of these are."""
        count = 0
        for holder_id in holder_ids:
            try:
                self._holders.admit(str(holder_id), address)
            except TooManyHoldersError:
                continue
            count += 1
        return count


@pytest.mark.parametrize(("trusted", "of_one"), [("", 12), ("192.0.2.0/24", 16)])
def test_an_address_is_bounded_once_three_quarters_are_there_unless_it_is_a_trusted_proxy(
    trusted: str, of_one: int
) -> None:
    bounded = Bounded(16, trusted)
    assert bounded.admitted("192.0.2.1", *range(100)) == of_one
    others = {number: f"198.51.100.{number}" for number in range(100, 110)}
    assert sum(bounded.admitted(address, number) for number, address in others.items()) == 16 - of_one


def test_a_holder_that_is_there_may_renew_whatever_its_address() -> None:
    bounded = Bounded(4)
    assert bounded.admitted("192.0.2.1", *range(10)) == 3
    assert bounded.admitted("198.51.100.1", 0, 1, 2) == 3
    assert bounded.admitted("192.0.2.1", 3) == 0


def test_a_holder_counts_until_its_lease_is_over() -> None:
    bounded = Bounded(4)
    assert bounded.admitted("192.0.2.1", 0, 1, 2, 3) == 3
    bounded.time += 60.0
    assert bounded.admitted("192.0.2.1", 0) == 1
    bounded.time += 5.0
    assert bounded.admitted("192.0.2.1", 3, 4, 5) == 2
    assert bounded.admitted("192.0.2.1", 0) == 1

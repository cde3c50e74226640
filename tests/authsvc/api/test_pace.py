"""How callers without a token are slowed down and logged: a pace and a tally, by address. Pure."""

from typing import Any

from authsvc.api.refusals import Pace
from authsvc.runtime.tally import Tally
from tests.clocks import Clock

ONE, OTHER = "192.0.2.1", "192.0.2.2"


def test_the_first_seconds_turns_are_at_once_and_each_further_one_in_its_time() -> None:
    pace = Pace(4, 1.0)
    assert [pace.delay_seconds(ONE, 100.0) for _ in range(9)] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0, None]
    assert pace.delay_seconds(OTHER, 100.0) == 0.0
    assert pace.delay_seconds(ONE, 100.25) == 1.0, "what was refused took no turn"
    assert [pace.delay_seconds(ONE, 200.0) for _ in range(5)] == [0, 0, 0, 0, 0.25]


def test_the_addresses_of_a_64_share_their_turns() -> None:
    pace = Pace(1, 0.0)
    assert pace.delay_seconds("2001:db8::1", 100.0) == 0.0
    assert pace.delay_seconds("2001:db8::2", 100.0) is None
    assert pace.delay_seconds("2001:db8:0:1::1", 100.0) == 0.0


def test_addresses_are_remembered_within_bounds() -> None:
    pace = Pace(1, 0.0)
    for number in range(20_000):
        pace.delay_seconds(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 100.0)
    assert len(pace._taken_until) == 10_000
    assert pace.delay_seconds("10.0.78.31", 100.0) is None, "the last one is"


def test_one_line_a_second_says_how_many_there_were_and_who_did_most_of_it() -> None:
    clock = Clock()
    lines: list[dict[str, Any]] = []
    tally = Tally(clock, lambda **fields: lines.append(fields))
    tally.add(ONE, method="first")
    for address in (ONE, OTHER, OTHER):
        tally.add(address, method="last")
    tally.flush()
    assert lines == [{"count": 1, "address": ONE, "address_count": 1, "addresses": 1, "method": "first"}]
    clock.advance(1.0)
    tally.flush()
    assert lines[1:] == [{"count": 3, "address": OTHER, "address_count": 2, "addresses": 2, "method": "last"}]
    clock.advance(1.0)
    tally.flush()
    assert len(lines) == 2, "there is nothing left to say"


def test_a_tally_remembers_addresses_within_bounds() -> None:
    clock = Clock()
    lines: list[dict[str, Any]] = []
    tally = Tally(clock, lambda **fields: lines.append(fields))
    for number in range(20_001):
        tally.add(f"address-{number}")
    clock.advance(1.0)
    tally.flush()
    assert (lines[1]["count"], lines[1]["addresses"]) == (20_000, 10_000)

"""The rate limit's window: aligned to the minute, one for each key."""

from datetime import UTC, datetime

import pytest

from httpbridge.errors import RateLimitedError
from httpbridge.ingest.handler import RateLimit
from tests.clocks import Clock

BYTES = 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_key_is_admitted_up_to_the_limit_and_again_in_the_next_minute(clock: Clock) -> None:
    limit = RateLimit(2, BYTES, clock.wall)
    clock.set(datetime(2026, 1, 1, 0, 0, 59, 999999, tzinfo=UTC))
    assert [limit.take("a").admitted for _ in range(3)] == [True, True, False]
    clock.advance(1e-6)
    assert limit.take("a").admitted


def test_keys_do_not_count_for_each_other_and_peeking_counts_for_nobody(clock: Clock) -> None:
    limit = RateLimit(1, BYTES, clock.wall)
    assert limit.take("a").admitted
    assert [limit.peek("b").remaining for _ in range(3)] == [1, 1, 1]
    assert limit.take("b").admitted
    assert not limit.peek("a").admitted


@pytest.mark.parametrize(
    ("second", "microsecond", "retry_after_seconds"), [(0, 0, 60), (0, 1, 60), (30, 0, 30), (59, 0, 1), (59, 999999, 1)]
)
def test_retry_after_leads_past_the_windows_end(
    clock: Clock, second: int, microsecond: int, retry_after_seconds: int
) -> None:
    clock.set(datetime(2026, 1, 1, 0, 0, second, microsecond, tzinfo=UTC))
    quota = RateLimit(1, BYTES, clock.wall).take("a")
    assert quota.retry_after_seconds == retry_after_seconds
    assert quota.reset_unix_seconds == datetime(2026, 1, 1, 0, 1, tzinfo=UTC).timestamp()


def test_a_clock_that_was_set_back_starts_a_window_of_its_own(clock: Clock) -> None:
    limit = RateLimit(1, BYTES, clock.wall)
    assert limit.take("a").admitted
    clock.advance(-3600)
    assert limit.take("a").admitted
    assert not limit.take("a").admitted


def test_bytes_end_a_keys_minute_as_requests_do(clock: Clock) -> None:
    limit = RateLimit(5, BYTES, clock.wall)
    assert limit.take("a").remaining == 4
    limit.begin_body("a", BYTES - 1)
    assert limit.take("a").remaining == 3
    count = limit.body("a")
    count(BYTES)  # what uses up the last of them is taken whole
    count(BYTES)
    for _ in range(2):
        refused = limit.take("a")
        assert (refused.admitted, refused.remaining) == (False, 0)
        assert (limit.peek("a").admitted, limit.peek("a").remaining) == (False, 0)
        with pytest.raises(RateLimitedError):
            limit.begin_body("a", 1)
    assert limit.take("b").remaining == 4
    clock.advance(60)
    assert limit.take("a").remaining == 4  # those that were refused did not count, nor what they would have brought
    limit.begin_body("a", 1)


def test_the_last_bytes_may_be_used_and_then_no_body_begins(clock: Clock) -> None:
    """Whether it comes at once or in pieces, which add up."""
    limit = RateLimit(5, BYTES, clock.wall)
    limit.take("a")
    count = limit.body("a")
    count(1)
    count(BYTES - 2)
    assert limit.peek("a").admitted
    count(1)
    assert not limit.peek("a").admitted
    with pytest.raises(RateLimitedError):
        limit.begin_body("a", 1)
    with pytest.raises(RateLimitedError):
        limit.body("a")(1)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_key_has_one_body_a_minute_however_low_the_limit(clock: Clock, at_once: bool) -> None:
    limit = RateLimit(5, 1, clock.wall)
    for _ in range(2):
        assert limit.take("a").admitted
        if at_once:
            limit.begin_body("a", BYTES)
        else:
            limit.body("a")(BYTES)
        assert not limit.take("a").admitted
        clock.advance(60)


def test_a_body_that_begins_in_one_minute_and_ends_in_the_next_counts_for_both(clock: Clock) -> None:
    limit = RateLimit(5, BYTES, clock.wall)
    limit.take("a")
    count = limit.body("a")
    count(BYTES)
    clock.advance(60)
    limit.take("a")
    count(BYTES - 1)
    assert limit.peek("a").admitted
    count(1)
    assert not limit.peek("a").admitted


def test_a_body_that_is_whole_in_the_next_minute_is_not_refused_for_the_last_one(clock: Clock) -> None:
    """Although nobody else has asked in the new one yet."""
    limit = RateLimit(5, BYTES, clock.wall)
    limit.take("a")
    limit.begin_body("a", BYTES)
    clock.advance(60)
    limit.body("a")(BYTES)
    assert not limit.peek("a").admitted

"""KeyValidator: what is cached, what is shared, what is bounded, and what it says of the key service."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from authsvc.client.environment import Address, Secret
from authsvc.client.raw_key import RawKey
from authsvc.client.validator import KeyServiceState, KeyValidator
from authsvc.client.verdicts import Decision, KeyServiceUnavailableError, Verdict
from tests.authsvc.client.fake_key_service import Clock, FakeKeyService, allowed, invalid, refused, until

KEY = RawKey("dt_0123456789abcdef01234567")
OTHER = RawKey("dt_76543210fedcba9876543210")
PAGE = "https://example.com"
ALLOWED = Decision(Verdict.ALLOWED, "demo", "key_0123456789abcdef")
INVALID = Decision(Verdict.INVALID_KEY, "", "")


async def test_a_verdict_is_asked_for_once_and_then_cached_until_it_expires(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    assert validator.cached(KEY, PAGE) is None
    assert await validator.validate(KEY, PAGE) == ALLOWED
    clock.now += 59.0
    assert validator.cached(KEY, PAGE) == ALLOWED
    assert await validator.validate(KEY.reveal(), "https://another.example") == ALLOWED
    assert len(service.calls) == 1
    clock.now += 1.0
    assert validator.cached(KEY, PAGE) is None
    await validator.validate(KEY, PAGE)
    assert len(service.calls) == 2


async def test_the_ttl_counts_from_when_the_call_was_sent(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    service.gate.clear()
    asking = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    clock.now += 40.0
    service.gate.set()
    await asking
    clock.now += 19.0
    assert validator.cached(KEY) == ALLOWED
    clock.now += 1.0
    assert validator.cached(KEY) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dt_",
        "dt_0123456789ABCDEF01234567",
        "dt_0123456789abcdef0123456",
        "dt_0123456789abcdef012345678",
        "dt_0123456789abcdef01234567\n",
        " dt_0123456789abcdef01234567",
        "xx_0123456789abcdef01234567",
        "dt_０123456789abcdef0123456",
        "dt_\udcff123456789abcdef0123456",
    ],
)
async def test_a_malformed_key_is_invalid_without_a_call(
    service: FakeKeyService, validator: KeyValidator, text: str
) -> None:
    assert await validator.validate(text, PAGE) == INVALID
    assert service.calls == []


async def test_an_invalid_key_is_cached_for_a_shorter_time(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    service.answer = invalid(ttl_seconds=5)
    assert await validator.validate(KEY, PAGE) == INVALID
    clock.now += 4.9
    assert validator.cached(KEY, None) == INVALID
    clock.now += 0.1
    assert validator.cached(KEY, None) is None


async def test_an_origin_is_refused_for_that_origin_only(service: FakeKeyService, validator: KeyValidator) -> None:
    service.answer = refused()
    assert (await validator.validate(KEY, PAGE)).verdict is Verdict.ORIGIN_NOT_ALLOWED
    service.answer = allowed(any_origin=False)
    assert await validator.validate(KEY, None) == ALLOWED
    assert (await validator.validate(KEY, PAGE)).verdict is Verdict.ORIGIN_NOT_ALLOWED
    assert len(service.calls) == 2


@pytest.mark.parametrize("origin", ["x" * 8000, "y" * 301, "https://\udcff.example"])
async def test_monstrous_origins_share_the_verdict_on_the_empty_one(
    service: FakeKeyService, validator: KeyValidator, origin: str
) -> None:
    service.answer = refused()
    await validator.validate(KEY, "")
    assert (await validator.validate(KEY, origin)).verdict is Verdict.ORIGIN_NOT_ALLOWED
    assert validator.cached(KEY, origin) is not None
    assert len(service.calls) == 1


async def test_callers_who_ask_for_the_same_at_once_share_one_call(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    service.answer = allowed(any_origin=False)
    service.gate.clear()
    same = [asyncio.create_task(validator.validate(KEY, PAGE)) for _ in range(50)]
    others = [asyncio.create_task(validator.validate(KEY, None)), asyncio.create_task(validator.validate(OTHER, PAGE))]
    await service.arrived(3)
    service.gate.set()
    assert await asyncio.gather(*same, *others) == [ALLOWED] * 52
    assert len(service.calls) == 3


async def test_a_caller_that_goes_away_does_not_cancel_the_call_for_the_others(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    service.gate.clear()
    first = asyncio.create_task(validator.validate(KEY))
    second = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    service.gate.set()
    assert await second == ALLOWED
    assert len(service.calls) == 1


async def test_a_call_that_everyone_left_still_fills_the_cache(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    service.gate.clear()
    asking = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    late = asyncio.create_task(validator.validate(KEY))
    service.gate.set()
    assert await late == ALLOWED
    assert validator.cached(KEY) == ALLOWED
    assert len(service.calls) == 1


async def test_a_failed_call_that_everyone_left_is_quiet(
    service: FakeKeyService, validator: KeyValidator, unhandled: list[dict[str, Any]]
) -> None:
    service.gate.clear()
    service.status = grpc.StatusCode.INTERNAL
    asking = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    service.gate.set()
    await until(lambda: validator.fault is not None)  # everyone who could be told has left
    await asyncio.sleep(0)  # for the call's task to end
    gc.collect()
    assert unhandled == []


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED])
async def test_a_fault_reaches_everyone_who_asked_and_is_never_cached(
    service: FakeKeyService, validator: KeyValidator, status: grpc.StatusCode
) -> None:
    service.status = status
    service.gate.clear()
    asking = [asyncio.create_task(validator.validate(KEY)) for _ in range(3)]
    await service.arrived(1)
    service.gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [KeyServiceUnavailableError] * 3
    service.status = None
    assert await validator.validate(KEY) == ALLOWED
    assert len(service.calls) == 2


async def test_an_unexpected_error_reaches_everyone_who_asked(address: Address, clock: Clock) -> None:
    class BrokenToken:
        def read(self) -> Secret:
            raise ZeroDivisionError

        def forget(self) -> None:
            raise NotImplementedError

    validator = KeyValidator(address, BrokenToken(), clock=clock)
    outcomes = await asyncio.gather(*(validator.validate(KEY) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 3
    with pytest.raises(ZeroDivisionError):
        await validator.state()
    await validator.close()


async def test_a_token_that_grpc_refuses_to_send_is_a_fault_and_the_watch_outlives_it(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    class Replaced:
        token = Secret("käse")

        def read(self) -> Secret:
            return self.token

        def forget(self) -> None:
            """Nothing is kept."""

    token = Replaced()
    async with KeyValidator(address, token, clock=clock) as validator:
        with pytest.raises(KeyServiceUnavailableError):
            await validator.validate(KEY)
        assert await validator.state() is KeyServiceState.NEVER_REACHED
        token.token = Secret(service.token)
        clock.now += 2.0  # the watch's longest back-off
        await until(lambda: validator.has_lease)
        assert await validator.validate(KEY) == ALLOWED


def keys(first: int, count: int) -> list[RawKey]:
    """Return keys that only this test uses."""
    return [RawKey(f"dt_{number:024x}") for number in range(first, first + count)]


def asked(validator: KeyValidator, these: list[RawKey]) -> list["asyncio.Task[Decision]"]:
    return [asyncio.create_task(validator.validate(key)) for key in these]


@pytest.fixture
async def narrow(service: FakeKeyService, address: Address, clock: Clock) -> AsyncIterator[KeyValidator]:
    """Make a validator that calls for 4 keys at once, one of them known, and lets 16 of each kind wait."""
    async with KeyValidator(address, service.token, calls_max=4, clock=clock) as validator:
        await until(lambda: validator.has_lease)
        yield validator


async def test_calls_under_way_are_bounded_and_more_wait_for_their_turn(
    service: FakeKeyService, narrow: KeyValidator
) -> None:
    """Beyond that a caller is told at once; cached verdicts and calls under way are not affected."""
    await narrow.validate(KEY)
    service.gate.clear()
    asking = asked(narrow, keys(0, 3 + 16))
    await service.arrived(1 + 3)
    with pytest.raises(KeyServiceUnavailableError, match="3 calls"):
        await narrow.validate(OTHER)
    assert await narrow.validate(KEY) == ALLOWED
    asking += asked(narrow, keys(0, 1))
    await asyncio.sleep(0)  # for it to join the call under way
    assert len(service.calls) == 1 + 3
    service.gate.set()
    assert await asyncio.gather(*asking) == [ALLOWED] * 20
    assert await narrow.validate(OTHER) == ALLOWED
    assert len(service.calls) == 1 + 19 + 1


async def test_waiting_for_a_turn_ends_after_a_second_and_is_logged_once(
    service: FakeKeyService, narrow: KeyValidator, clock: Clock
) -> None:
    service.gate.clear()
    asking = asked(narrow, keys(0, 3 + 16))
    await service.arrived(3)
    with capture_logs() as logs:
        clock.now += 1.0
        outcomes = await asyncio.gather(*asking[3:], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [KeyServiceUnavailableError] * 16
        service.gate.set()
        assert await asyncio.gather(*asking[:3]) == [ALLOWED] * 3
        assert await narrow.validate(OTHER) == ALLOWED
    saturated = {"event": "key_service_calls_saturated", "log_level": "warning", "calls": 3}
    assert [entry for entry in logs if entry["event"] != "key_service_reached"] == [saturated]


@pytest.mark.parametrize("has_lease", [True, False])
async def test_a_flood_of_unknown_keys_does_not_keep_a_good_key_waiting(
    service: FakeKeyService, narrow: KeyValidator, clock: Clock, has_lease: bool
) -> None:
    """Its verdict has expired, or may not be used without a lease; that it was good is remembered."""
    service.next_answers.append(allowed(any_origin=False))
    await narrow.validate(KEY, PAGE)
    service.lease_seconds = 600.0 if has_lease else 0.0
    clock.now += 60.0 if has_lease else 600.0
    assert narrow.has_lease is has_lease
    assert narrow.cached(KEY, PAGE) is None
    service.gate.clear()
    asking = asked(narrow, keys(0, 3 + 16))
    await service.arrived(1 + 3)
    good = [asyncio.create_task(narrow.validate(KEY, PAGE))]
    await service.arrived(1 + 4)
    assert service.calls[-1].api_key == KEY.reveal()
    service.gate.set()
    await asyncio.gather(*asking, *good)


async def test_who_joins_a_call_that_waits_for_its_turn_uses_its_answer_through_the_cache_only(
    service: FakeKeyService, narrow: KeyValidator
) -> None:
    """Rule 4, as for a call that is under way."""
    service.gate.clear()
    asking = asked(narrow, keys(0, 3))
    await service.arrived(3)
    first, joined = asked(narrow, [KEY, KEY])
    await asyncio.sleep(0)
    await service.mutate(KEY)
    service.next_answers += [allowed(revision=1)] * 4
    service.answer = invalid(revision=2)
    service.gate.set()
    assert await first == ALLOWED
    assert await joined == INVALID
    await asyncio.gather(*asking)
    assert len(service.calls) == 5


async def test_cached_verdicts_go_on_while_the_service_is_away(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    await validator.validate(KEY)
    service.status = grpc.StatusCode.UNAVAILABLE
    clock.now += 59.0
    assert await validator.validate(KEY) == ALLOWED
    clock.now += 1.0
    with pytest.raises(KeyServiceUnavailableError):
        await validator.validate(KEY)
    service.status = None
    assert await validator.validate(KEY) == ALLOWED


async def test_the_state_is_true_without_traffic(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    service.status = grpc.StatusCode.UNAVAILABLE
    assert await validator.state() is KeyServiceState.NEVER_REACHED
    clock.now += 1.0
    service.status = None
    assert await validator.state() is KeyServiceState.OK
    clock.now += 1.0
    service.status = grpc.StatusCode.UNAUTHENTICATED
    assert await validator.state() is KeyServiceState.AWAY
    assert "refuses our token" in str(validator.fault)
    clock.now += 1.0
    service.status = None
    assert await validator.state() is KeyServiceState.OK
    assert validator.fault is None


async def test_the_state_tells_whether_cached_verdicts_are_left(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    await validator.validate(KEY)
    service.status = grpc.StatusCode.UNAVAILABLE
    clock.now += 30.0
    assert await validator.state() is KeyServiceState.AWAY_CACHED
    clock.now += 30.0
    assert await validator.state() is KeyServiceState.AWAY


async def test_the_probe_calls_at_most_once_a_second_and_is_not_cached(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """It presents the token and a key that was never issued, which even a flood of readiness checks shares."""
    service.answer = invalid()
    await asyncio.gather(*(validator.state() for _ in range(20)))
    await asyncio.gather(*(validator.state() for _ in range(20)))
    assert len(service.calls) == 1
    assert service.calls[0].authorization == "Bearer the-token"
    assert validator.cached(RawKey(service.calls[0].api_key)) is None
    clock.now += 1.0
    await validator.state()
    assert len(service.calls) == 2


async def test_recent_traffic_makes_the_probe_needless(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    await validator.validate(KEY)
    clock.now += 0.9
    assert await validator.state() is KeyServiceState.OK
    assert len(service.calls) == 1


async def test_only_changes_are_logged(service: FakeKeyService, validator: KeyValidator, clock: Clock) -> None:
    with capture_logs() as logs:
        for status in (None, grpc.StatusCode.UNAVAILABLE, None):
            service.status = status
            for _ in range(3):
                clock.now += 1.0
                await validator.state()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("key_service_reached", "info"),
        ("key_service_lost", "warning"),
        ("key_service_reached", "info"),
    ]
    assert "UNAVAILABLE" in logs[1]["reason"]


async def test_a_service_that_never_answered_is_logged_once(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    service.status = grpc.StatusCode.PERMISSION_DENIED
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(KeyServiceUnavailableError):
                await validator.validate(KEY)
    assert [entry["event"] for entry in logs] == ["key_service_not_reached"]
    assert KEY.reveal() not in str(logs)


async def test_closing_ends_the_calls_under_way_with_a_fault(service: FakeKeyService, validator: KeyValidator) -> None:
    service.gate.clear()
    asking = [asyncio.create_task(validator.validate(KEY)) for _ in range(3)]
    checking = asyncio.create_task(validator.state())
    await service.arrived(2)
    await validator.close()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [KeyServiceUnavailableError] * 3
    assert await checking is KeyServiceState.NEVER_REACHED
    with pytest.raises(KeyServiceUnavailableError, match="closed"):
        await validator.validate(OTHER)


async def test_a_service_of_ones_own_connects_in_one_line(service: FakeKeyService, address: Address) -> None:
    async with KeyValidator(str(address), service.token) as validator:
        assert await validator.validate(KEY.reveal()) == ALLOWED

"""KeyValidator: what is cached, what is shared, what is bounded, and what it says of the key service."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import TokenSource
from authsvc.client.validator import KeyServiceState, KeyValidator
from authsvc.client.verdicts import Decision, KeyServiceUnavailableError, Verdict
from authsvc.runtime.environment import Address, Secret
from authsvc.v1 import key_service_pb2 as pb2
from tests.authsvc.client.client_log import client_events
from tests.authsvc.client.fake_key_service import BRIDGE_TOKEN, FakeKeyService, allowed, invalid, refused
from tests.clocks import Clock
from tests.waiting import until

KEY = ApiKey("dt_0123456789abcdef01234567")
OTHER = ApiKey("dt_76543210fedcba9876543210")
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
    clock.now += 1.5
    service.gate.set()
    await asking
    clock.now += 58.0
    assert validator.cached(KEY) == ALLOWED
    clock.now += 0.5
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
    await until("the fault is noted", lambda: validator.fault is not None)  # everyone who could be told has left
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
    class BrokenToken(TokenSource):
        def read(self) -> Secret:
            raise ZeroDivisionError

        def forget(self) -> None:
            raise NotImplementedError

    validator = KeyValidator(address, BrokenToken(Secret("any")), clock=clock)
    outcomes = await asyncio.gather(*(validator.validate(KEY) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 3
    with pytest.raises(ZeroDivisionError):
        await validator.state()
    await validator.close()


async def test_a_token_that_grpc_refuses_to_send_is_a_fault_and_the_watch_outlives_it(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    class Replaced(TokenSource):
        token = Secret("käse")

        def read(self) -> Secret:
            return self.token

        def forget(self) -> None:
            """Nothing is kept."""

    token = Replaced(Secret("any"))
    async with KeyValidator(address, token, clock=clock) as validator:
        with pytest.raises(KeyServiceUnavailableError):
            await validator.validate(KEY)
        assert await validator.state() is KeyServiceState.NEVER_REACHED
        token.token = Secret(service.token)
        clock.now += 2.0  # the watch's longest back-off
        await until("it has a lease", lambda: validator.has_lease)
        assert await validator.validate(KEY) == ALLOWED


def keys(first: int, count: int) -> list[ApiKey]:
    """Return keys that only this test uses."""
    return [ApiKey(f"dt_{number:024x}") for number in range(first, first + count)]


def asked(validator: KeyValidator, these: list[ApiKey]) -> list["asyncio.Task[Decision]"]:
    return [asyncio.create_task(validator.validate(key)) for key in these]


async def test_keys_that_are_asked_for_at_once_go_together(service: FakeKeyService, validator: KeyValidator) -> None:
    """As many as a call takes, which is 256."""
    assert await asyncio.gather(*asked(validator, keys(0, 300))) == [ALLOWED] * 300
    assert sorted(service.batches) == [44, 256]


async def test_what_is_asked_while_calls_are_under_way_goes_along_with_the_next_one(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """The first does not wait for company, nor do the others beyond the end of a call."""
    service.gate.clear()
    asking = []
    for number in range(2):  # calls at once for keys that are not known
        asking += asked(validator, keys(number, 1))
        await service.arrived(number + 1)
    for number in range(2, 40):
        asking += asked(validator, keys(number, 1))
        await asyncio.sleep(0)
    service.gate.set()
    assert await asyncio.gather(*asking) == [ALLOWED] * 40
    assert service.batches == [1, 1, 38]


async def test_many_invalid_keys_are_asked_for_a_few_at_a_time(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """Keys that were good lately do not wait for them, nor do new ones once few are invalid."""
    service.next_answers = [allowed(ttl_seconds=1)]
    await validator.validate(KEY)
    clock.now += 1.0
    service.answer = invalid()
    with client_events() as logs:
        flood = asked(validator, keys(0, 600))
        await until("callers are answered", lambda: sum(task.done() for task in flood) == 512)
    assert [each["event"] for each in logs] == ["invalid_keys_flood"]
    service.next_answers = [allowed()]
    assert await validator.validate(KEY) == ALLOWED
    assert service.batches == [1, 256, 256, 1]
    clock.now += 0.0085
    await until("callers are answered", lambda: sum(task.done() for task in flood) == 520)
    service.answer = allowed()
    clock.now += 0.0085
    assert (await asyncio.gather(*flood)).count(ALLOWED) == 80
    assert service.batches[4:6] == [8, 9]


async def test_a_key_without_a_verdict_does_not_spoil_the_others(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    service.next_answers += [allowed(), pb2.ValidateResponse(), invalid(), pb2.ValidateResponse(verdict=99)]  # type: ignore[arg-type]  # a verdict of a later version
    outcomes = await asyncio.gather(*asked(validator, keys(0, 4)), return_exceptions=True)
    assert service.batches == [4]
    assert (outcomes[0], outcomes[2]) == (ALLOWED, INVALID)
    assert isinstance(outcomes[1], KeyServiceUnavailableError)
    assert isinstance(outcomes[3], KeyServiceUnavailableError)
    assert validator.fault is None
    service.answer = pb2.ValidateResponse()
    with pytest.raises(KeyServiceUnavailableError):
        await validator.validate(KEY)
    assert "database" in str(validator.fault), "nobody gets a verdict"


@pytest.fixture
async def narrow(service: FakeKeyService, address: Address, clock: Clock) -> AsyncIterator[KeyValidator]:
    """Make a validator that makes 2 calls at once, one of them for known keys, and lets 16 keys of each kind wait."""
    async with KeyValidator(address, service.token, calls_max=2, waiting_max=16, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        yield validator


async def busy(
    service: FakeKeyService, narrow: KeyValidator, waiting: int = 16
) -> tuple[list["asyncio.Task[Decision]"], list["asyncio.Task[Decision]"]]:
    """Have a call under way, about three keys, and so many keys waiting for the next one; return who asks for them."""
    service.gate.clear()
    before = len(service.calls)
    under_way = asked(narrow, keys(0, 3))
    await service.arrived(before + 3)
    queue = asked(narrow, keys(3, waiting))
    await asyncio.sleep(0)  # for them to ask
    return under_way, queue


async def test_keys_that_wait_are_bounded_and_beyond_that_callers_are_told_at_once(
    service: FakeKeyService, narrow: KeyValidator
) -> None:
    """Cached verdicts are not affected, nor are those who ask for what is asked for already."""
    await narrow.validate(KEY)
    under_way, queue = await busy(service, narrow)
    with client_events() as logs:
        for _ in range(3):
            with pytest.raises(KeyServiceUnavailableError, match="16 keys wait"):
                await narrow.validate(OTHER)
    assert logs == [{"event": "key_service_calls_saturated", "log_level": "warning", "calls": 1, "waiting": 16}]
    assert await narrow.validate(KEY) == ALLOWED
    joined = asked(narrow, keys(0, 3 + 16))
    await asyncio.sleep(0)  # for them to join
    assert service.batches == [1, 3]
    service.gate.set()
    assert await asyncio.gather(*under_way, *queue, *joined) == [ALLOWED] * 2 * 19
    assert await narrow.validate(OTHER) == ALLOWED
    assert service.batches == [1, 3, 16, 1]


async def test_nobody_waits_longer_than_two_seconds_in_all(
    service: FakeKeyService, address: Address, narrow: KeyValidator, clock: Clock
) -> None:
    """For the turn and the call together. What nobody waits for is not asked; an answer that comes late is kept."""
    under_way, queue = await busy(service, narrow)
    joined = asked(narrow, keys(0, 1))
    clock.now += 1.9
    await asyncio.sleep(0)
    assert not any(task.done() for task in [*under_way, *queue, *joined])
    clock.now += 0.1
    outcomes = await asyncio.gather(*under_way, *queue, *joined, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [KeyServiceUnavailableError] * 20
    # The call has a deadline as well: on a machine that is busy for two seconds, it is the one that is told of.
    ours, calls = "there was no verdict within 2 s", f"the key service at {address} did not answer within 2 s"
    assert {str(outcome) for outcome in outcomes} <= {ours, calls}
    service.gate.set()
    assert await narrow.validate(OTHER) == ALLOWED
    assert service.batches == [3, 1]
    assert [narrow.cached(key) for key in keys(0, 3)] == [ALLOWED] * 3


async def test_who_goes_away_while_waiting_leaves_the_place_to_others(
    service: FakeKeyService, narrow: KeyValidator
) -> None:
    under_way, queue = await busy(service, narrow)
    joined = asked(narrow, keys(4, 1))
    await asyncio.sleep(0)  # for it to join
    for task in queue[:2]:
        task.cancel()
    await asyncio.wait(queue[:2])
    in_place = asked(narrow, [OTHER])
    await asyncio.sleep(0)
    service.gate.set()
    assert await asyncio.gather(*under_way, *queue[2:], *joined, *in_place) == [ALLOWED] * (3 + 14 + 1 + 1)
    assert service.batches == [3, 16]
    assert keys(3, 1)[0].reveal() not in {call.api_key for call in service.calls}


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
    under_way, queue = await busy(service, narrow)
    good = asyncio.create_task(narrow.validate(KEY, PAGE))
    await service.arrived(1 + 3 + 1)
    assert service.calls[-1].api_key == KEY.reveal()
    assert service.batches == [1, 3, 1]
    service.gate.set()
    await asyncio.gather(*under_way, *queue, good)


async def test_good_keys_that_wait_go_before_all_others(
    service: FakeKeyService, narrow: KeyValidator, clock: Clock
) -> None:
    good = keys(100, 3)
    await asyncio.gather(*asked(narrow, good))
    clock.now += 60.0
    under_way, queue = await busy(service, narrow)
    under_way += asked(narrow, good[:1])
    await service.arrived(3 + 3 + 1)
    queue += asked(narrow, good[1:])
    await asyncio.sleep(0)
    service.gate.set()
    await asyncio.gather(*under_way, *queue)
    assert service.batches == [3, 3, 1, 2, 16]
    assert [call.api_key for call in service.calls[7:9]] == [key.reveal() for key in good[1:]]


async def test_who_joins_a_call_that_waits_for_its_turn_uses_its_answer_through_the_cache_only(
    service: FakeKeyService, narrow: KeyValidator
) -> None:
    """Rule 4, as for a call that is under way."""
    under_way, _ = await busy(service, narrow, waiting=0)
    first, joined = asked(narrow, [KEY, KEY])
    await asyncio.sleep(0)
    await service.mutate(KEY)
    service.next_answers += [allowed(revision=1)] * 4
    service.answer = invalid(revision=2)
    service.gate.set()
    assert await first == ALLOWED
    assert await joined == INVALID
    await asyncio.gather(*under_way)
    assert service.batches == [3, 1, 1]


async def test_those_who_joined_an_answer_that_is_not_kept_share_the_next_one(
    service: FakeKeyService, narrow: KeyValidator
) -> None:
    """Through the cache, as before; however many they are, they take one place of those that wait."""
    service.gate.clear()
    asking = asked(narrow, [KEY] * 100)
    await service.arrived(1)
    await service.mutate(KEY)
    service.next_answers.append(allowed(revision=1))
    service.answer = invalid(revision=2)
    service.gate.set()
    assert await asyncio.gather(*asking) == [ALLOWED, *[INVALID] * 99]
    assert service.batches == [1, 1]


async def test_who_joined_answers_that_are_never_kept_asks_in_the_end(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    await service.mutate()
    assert await asyncio.gather(*asked(validator, [KEY] * 5)) == [ALLOWED] * 5
    assert service.batches == [1, 1, 3]


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
    assert service.calls[0].authorization == f"Bearer {BRIDGE_TOKEN}"
    assert validator.cached(ApiKey(service.calls[0].api_key)) is None
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
    with client_events() as logs:
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
    with client_events() as logs:
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


async def test_closing_ends_the_wait_for_a_call_too(service: FakeKeyService, narrow: KeyValidator) -> None:
    under_way, queue = await busy(service, narrow)
    queue += asked(narrow, keys(3, 1))
    await asyncio.sleep(0)  # for it to join
    await narrow.close()
    outcomes = await asyncio.gather(*under_way, *queue, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["this validator is closed"] * 20
    assert service.batches == [3]


@pytest.mark.parametrize("turns", range(8))
async def test_closing_leaves_nobody_waiting_whose_call_was_about_to_begin(
    address: Address, clock: Clock, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Calls that fail without a connection begin one after the other, one in each turn of the event loop."""

    class BrokenToken(TokenSource):
        def read(self) -> Secret:
            raise ZeroDivisionError

        def forget(self) -> None:
            raise NotImplementedError

    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)  # however slow the machine is, none waits too long
    validator = KeyValidator(address, BrokenToken(Secret("any")), clock=clock)
    asking = asked(validator, keys(0, 2048))
    for _ in range(turns):
        await asyncio.sleep(0)
    await validator.close()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} <= {"", "this validator is closed"}


async def test_a_service_of_ones_own_connects_in_one_line(service: FakeKeyService, address: Address) -> None:
    async with KeyValidator(str(address), service.token) as validator:
        assert await validator.validate(KEY.reveal()) == ALLOWED

"""Cached verdicts: used under a live lease, invalidated by changes, and never filled with what is older."""

import asyncio
import time

import grpc
import pytest

from authsvc.client.api_key import ApiKey
from authsvc.client.validator import KeyServiceState, KeyValidator
from authsvc.client.verdicts import Decision, KeyServiceUnavailableError, Verdict
from authsvc.runtime.clock import boot_clock
from authsvc.runtime.environment import Address
from tests.authsvc.client.fake_key_service import FakeKeyService, allowed, invalid
from tests.clocks import Clock
from tests.waiting import until

KEY = ApiKey("dt_0123456789abcdef01234567")
OTHER = ApiKey("dt_76543210fedcba9876543210")
ALLOWED = Decision(Verdict.ALLOWED, "demo", "key_0123456789abcdef")
INVALID = Decision(Verdict.INVALID_KEY, "", "")


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that counts while suspended")
def test_leases_run_out_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 12: by the clock that goes on then, which on a machine that never slept reads as the others do."""
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)
    assert boot_clock() == 7.0


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that counts while suspended")
async def test_a_validator_goes_by_that_clock_unless_told_otherwise(
    service: FakeKeyService, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = {time.CLOCK_BOOTTIME: 1000.0}
    monkeypatch.setattr(time, "clock_gettime", readings.__getitem__)
    async with KeyValidator(address, service.token) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        readings[time.CLOCK_BOOTTIME] += service.lease_seconds - 0.1
        assert validator.has_lease
        readings[time.CLOCK_BOOTTIME] += 0.1
        assert not validator.has_lease


async def unleased(service: FakeKeyService, address: Address, clock: Clock) -> KeyValidator:
    """Return a validator whose stream is open, and which has no lease."""
    service.lease_seconds = 0
    validator = KeyValidator(address, service.token, clock=clock)
    validator.start()
    await (await service.stream()).request(lambda _: True)
    return validator


async def test_without_a_lease_every_request_asks(service: FakeKeyService, address: Address, clock: Clock) -> None:
    """Those that ask at once as well: a call that is under way may have begun before a change."""
    validator = await unleased(service, address, clock)
    for _ in range(3):
        assert await validator.validate(KEY) == ALLOWED
        assert validator.cached(KEY) is None
    assert len(service.calls) == 3
    service.gate.clear()
    asking = [asyncio.create_task(validator.validate(KEY)) for _ in range(4)]
    await service.arrived(7)
    service.gate.set()
    assert await asyncio.gather(*asking) == [ALLOWED] * 4
    assert not validator.has_lease
    assert await validator.state() is KeyServiceState.NO_LEASE
    await validator.close()


async def test_without_a_lease_many_callers_of_one_key_share_few_calls(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    """Each has a place of its own in them (rule 4)."""
    validator = await unleased(service, address, clock)
    service.gate.clear()
    asking = [asyncio.create_task(validator.validate(KEY)) for _ in range(250)]
    await service.arrived(250)
    asking += [asyncio.create_task(validator.validate(KEY)) for _ in range(250)]
    await service.arrived(500)
    service.gate.set()
    assert await asyncio.gather(*asking) == [ALLOWED] * 500
    assert service.batches == [250, 250]
    await validator.close()


async def test_without_a_lease_the_calls_are_bounded_too(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    validator = KeyValidator(address, service.token, calls_max=2, waiting_max=8, clock=clock)
    service.lease_seconds = 0
    service.gate.clear()
    asking = [asyncio.create_task(validator.validate(KEY))]
    await service.arrived(1)
    asking += [asyncio.create_task(validator.validate(KEY)) for _ in range(8)]
    await asyncio.sleep(0)  # for them to ask
    with pytest.raises(KeyServiceUnavailableError, match="8 keys wait"):
        await validator.validate(KEY)
    service.gate.set()
    await asyncio.gather(*asking)
    assert service.batches == [1, 8]
    await validator.close()


async def test_a_lease_ends_by_the_clock_while_the_stream_is_silent(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    """No message and no timer is needed for that; what is cached stays unused, though it has not expired."""
    validator = await unleased(service, address, clock)
    stream = await service.stream()
    await stream.reset("epoch-1", 1)
    keep_alive = await stream.acknowledged(1)
    clock.now += 1.0
    await stream.lease(keep_alive.sequence, 30.0, 1)
    await until("it has a lease", lambda: validator.has_lease)
    await validator.validate(KEY)
    clock.now += 28.9
    assert validator.cached(KEY) == ALLOWED
    clock.now += 0.1  # 30 s after the keep-alive was sent, not after the lease came (rule 2)
    assert validator.cached(KEY) is None
    assert not validator.has_lease
    assert await validator.validate(KEY) == ALLOWED
    assert len(service.calls) == 2
    await validator.close()


async def test_an_outage_is_bridged_to_the_leases_end_and_then_nothing_is_admitted_or_refused(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    service.lease_seconds = 30.0
    async with KeyValidator(address, service.token, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        await validator.validate(KEY)
        service.lease_seconds = 0
        service.status = grpc.StatusCode.UNAVAILABLE
        clock.now += 29.0
        assert await validator.validate(KEY) == ALLOWED
        assert await validator.state() is KeyServiceState.AWAY_CACHED
        clock.now += 1.0
        for key in (KEY, OTHER):
            with pytest.raises(KeyServiceUnavailableError):
                await validator.validate(key)
        assert await validator.state() is KeyServiceState.AWAY


async def test_a_change_voids_its_keys_and_is_acknowledged(service: FakeKeyService, validator: KeyValidator) -> None:
    """When the acknowledgement has arrived the old verdict is gone: Revoke counts on it."""
    await validator.validate(KEY)
    await validator.validate(OTHER)
    service.answer = invalid(revision=2)
    await service.mutate(KEY)
    assert validator.cached(KEY) is None
    assert validator.cached(OTHER) == ALLOWED
    assert await validator.validate(KEY) == INVALID


async def test_a_key_that_was_probed_before_it_existed_works_at_once(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    service.answer = invalid()
    assert await validator.validate(KEY) == INVALID
    assert validator.cached(KEY) == INVALID
    service.answer = allowed(revision=2)
    await service.mutate(KEY)
    assert await validator.validate(KEY) == ALLOWED


async def test_an_answer_from_before_an_applied_change_is_used_once_and_not_kept(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """Whichever key the change was about: the answer's revision is all that is known of its age (rule 4)."""
    service.gate.clear()
    asking = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    await service.mutate(OTHER)
    service.gate.set()
    assert await asking == ALLOWED
    assert validator.cached(KEY) is None
    service.answer = allowed(revision=2)
    await validator.validate(KEY)
    assert validator.cached(KEY) == ALLOWED


async def test_of_the_answers_of_one_call_each_is_kept_by_its_own_revision(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """One may have been read before a change that was applied, and its neighbour after it (rule 4)."""
    service.gate.clear()
    service.next_answers += [allowed(revision=1), allowed(revision=2)]
    asking = [asyncio.create_task(validator.validate(key)) for key in (KEY, OTHER)]
    await service.arrived(2)
    await service.mutate(ApiKey("dt_" + "f" * 24))
    service.gate.set()
    assert await asyncio.gather(*asking) == [ALLOWED, ALLOWED]
    assert service.batches == [2]
    assert validator.cached(KEY) is None
    assert validator.cached(OTHER) == ALLOWED


async def test_who_joins_a_call_that_began_before_a_change_asks_again(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """Its answer is for the request that made it alone; the one that joined began after the change (rule 4)."""
    service.gate.clear()
    first = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    await service.mutate(KEY)
    service.next_answers.append(allowed(revision=1))
    service.answer = invalid(revision=2)
    joined = asyncio.create_task(validator.validate(KEY))
    await asyncio.sleep(0)  # for it to join
    service.gate.set()
    assert await first == ALLOWED
    assert await joined == INVALID
    assert validator.cached(KEY) == INVALID
    assert len(service.calls) == 2


async def test_who_joins_a_call_that_the_lease_did_not_outlast_asks_again(
    service: FakeKeyService, address: Address
) -> None:
    """The answer is in the cache by then, which may not be used any more (rules 2 and 4)."""
    clock = Clock()  # by which no timer goes: callers wait for two seconds
    service.lease_seconds = 30.0
    async with KeyValidator(address, service.token, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        service.lease_seconds = 0
        service.gate.clear()
        first = asyncio.create_task(validator.validate(KEY))
        await service.arrived(1)
        joined = asyncio.create_task(validator.validate(KEY))
        await asyncio.sleep(0)  # for it to join
        clock.now += 30.0
        service.answer, service.next_answers = invalid(), [allowed()]
        service.gate.set()
        assert await first == ALLOWED
        assert await joined == INVALID
    assert len(service.calls) == 2


async def test_an_answer_from_another_epoch_is_not_kept(service: FakeKeyService, validator: KeyValidator) -> None:
    """Its revision may be greater and say nothing: commits may have been lost since."""
    service.gate.clear()
    service.answer = allowed(revision=99)
    asking = asyncio.create_task(validator.validate(KEY))
    await service.arrived(1)
    await new_epoch(service)
    service.gate.set()
    assert await asking == ALLOWED
    assert validator.cached(KEY) is None


async def new_epoch(service: FakeKeyService) -> None:
    """Renew the epoch as the service does after a restore; return when the holder has acknowledged it."""
    service.epoch, service.revision = "epoch-2", 1
    await service.streams[-1].reset(service.epoch, service.revision)
    await service.streams[-1].request(lambda request: request.epoch == service.epoch)


async def test_a_reset_empties_the_cache_and_keeps_the_lease(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    await validator.validate(KEY)
    stream = await service.stream()
    service.lease_seconds = 0
    await stream.reset(service.epoch, 20)
    acknowledged = await stream.acknowledged(20)
    assert validator.cached(KEY) is None
    assert validator.has_lease
    await stream.reset(service.epoch, 10)
    again = await stream.request(lambda request: request.sequence > acknowledged.sequence)
    assert again.applied_revision == 20, "the applied revision went down within an epoch"


async def test_another_epoch_ends_every_lease(service: FakeKeyService, validator: KeyValidator) -> None:
    await validator.validate(KEY)
    service.lease_seconds = 0
    await new_epoch(service)
    assert not validator.has_lease
    assert validator.cached(KEY) is None
    stream = await service.stream()
    keep_alive = stream.requests[-1]
    await stream.lease(keep_alive.sequence - 1, 600.0, 1)  # asked for in the old epoch
    await service.mutate(KEY)
    assert not validator.has_lease
    await stream.lease(keep_alive.sequence, 600.0, 1)
    await until("it has a lease", lambda: validator.has_lease)


async def test_a_holder_that_the_service_knows_to_be_ahead_of_its_database_gives_up_what_it_has(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """What it has cached and what it is told from now on would be of two histories."""
    assert await validator.validate(KEY) == validator.cached(KEY) == ALLOWED
    service.lease_seconds = 0
    (await service.stream()).end(grpc.StatusCode.FAILED_PRECONDITION)
    await service.stream(2)
    assert not validator.has_lease
    service.lease_seconds = 60
    (await service.stream(2)).end(grpc.StatusCode.UNAVAILABLE)
    await until("it has a lease", lambda: validator.has_lease)
    assert validator.cached(KEY) is None


async def test_a_lease_counts_only_once_every_change_before_it_is_applied(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    validator = await unleased(service, address, clock)
    stream = await service.stream()
    await stream.reset("epoch-1", 1)
    keep_alive = await stream.acknowledged(1)
    await stream.lease(keep_alive.sequence, 30.0, 3)
    await stream.change(2, KEY)
    await stream.acknowledged(2)
    assert not validator.has_lease
    await stream.change(3, KEY)
    await stream.acknowledged(3)
    await until("it has a lease", lambda: validator.has_lease)
    await validator.close()


async def test_a_burst_of_changes_is_acknowledged_with_few_keep_alives(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """However many there are: an acknowledgement covers all before it, and few are on their way at once."""
    stream = await service.stream()
    service.lease_seconds = 0
    await asyncio.gather(*(stream.change(revision, KEY) for revision in range(2, 102)))
    await until("keep-alives come", lambda: len(stream.requests) >= 6)
    for request in list(stream.requests):
        await stream.lease(request.sequence, 600.0, 101)
    await stream.acknowledged(101)
    assert len(stream.requests) < 20

"""An hour without the key service, in virtual time, and its return: the real one goes away and comes back."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from authsvc.client.api_key import ApiKey
from authsvc.client.validator import KeyServiceState, KeyValidator
from authsvc.client.verdicts import KeyServiceUnavailableError, Verdict
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from tests.authsvc.conftest import Service, running
from tests.clocks import Clock
from tests.measured import Measured
from tests.waiting import until

LEASE_SECONDS = 30.0
"""Less than the time for which a verdict may be cached, so that it is the lease which ends."""
LEASE = {"AUTHSVC_LEASE_SECONDS": str(LEASE_SECONDS)}
OUTAGE_SECONDS = 3600.0
STEP_SECONDS = 10.0
KEYS = 20
CALLERS = 500
HOLDERS = 20
REFUSAL_SECONDS_MAX = 1.5
RECOVERY_SECONDS_MAX = 6.0
"""Two seconds of back-off, an attempt to connect, and a busy machine."""
SPREAD_SECONDS_MIN = 0.3
"""Between the first and the last of the holders to come back, each of which waits for one to two seconds."""


async def issue(service: Service, project: str) -> ApiKey:
    issued = await service.keys.Issue(pb.IssueRequest(project_id=project), metadata=service.token())
    return ApiKey(issued.api_key)


def bridge_token(service: Service) -> str:
    return service.token("bridge")[0][1].removeprefix("Bearer ")


async def outcome(validator: KeyValidator, key: ApiKey) -> Verdict | None:
    """Return the verdict; None when there is none, which a caller of the bridge sees as a 503."""
    try:
        return (await validator.validate(key)).verdict
    except KeyServiceUnavailableError:
        return None


def validations(logs: list[Any]) -> int:
    """Return how many batches were answered, in calls of their own and on streams."""
    methods = {f"/authsvc.v1.KeyService/{name}" for name in ("BatchValidate", "StreamValidate")}
    return sum(entry.get("method") in methods for entry in logs)


async def test_an_hour_of_outage_is_served_from_the_cache_to_the_end_of_the_lease_and_never_makes_a_key_invalid(
    tmp_path: Path, clock: Clock, measured: Measured
) -> None:
    """Keys that are not cached have no verdict at once. After the return all keys work within seconds."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        async with running(tmp_path / "state", **LEASE) as service:
            address = service.address
            cached = [await issue(service, f"cached-{number}") for number in range(KEYS)]
            unseen = [await issue(service, f"unseen-{number}") for number in range(KEYS)]
            validator = KeyValidator(address, bridge_token(service), clock=clock)
            stack.push_async_callback(validator.close)
            validator.start()
            await until("it has a lease", lambda: validator.has_lease)
            for key in cached:
                assert await outcome(validator, key) is Verdict.ALLOWED
        # The clock has stood still, so that is when the lease was asked for.
        went_away_at = clock.now
        refusal_seconds = []
        for step in range(int(OUTAGE_SECONDS / STEP_SECONDS)):
            is_leased = clock.now < went_away_at + LEASE_SECONDS
            expected = Verdict.ALLOWED if is_leased else None
            assert await outcome(validator, cached[step % KEYS]) is expected
            assert await outcome(validator, cached[-1]) is expected
            asked_at = loop.time()
            assert await outcome(validator, unseen[step % KEYS]) is None
            refusal_seconds.append(loop.time() - asked_at)
            assert await validator.state() is (KeyServiceState.AWAY_CACHED if is_leased else KeyServiceState.AWAY)
            clock.now += STEP_SECONDS
        assert max(refusal_seconds) < REFUSAL_SECONDS_MAX

        with capture_logs() as logs:
            waiting = asyncio.create_task(first_verdicts(validator, cached))
            service = await stack.enter_async_context(running(tmp_path / "state", **LEASE, AUTHSVC_LISTEN=str(address)))
            came_back_at = loop.time()
            outcomes = await waiting
            await until("it has a lease", lambda: validator.has_lease)
            recovery_seconds = loop.time() - came_back_at
            assert outcomes.keys() == {Verdict.ALLOWED, None}
            assert recovery_seconds < RECOVERY_SECONDS_MAX
            asked = validations(logs)
            assert 1 <= asked <= KEYS // 2, "all keys share the first calls"
        with capture_logs() as logs:
            verdicts = await asyncio.gather(*(outcome(validator, unseen[n % KEYS]) for n in range(CALLERS)))
            assert verdicts == [Verdict.ALLOWED] * CALLERS
            await until("the call is logged", lambda: validations(logs) > 0)
            assert validations(logs) == 1, "those who ask at once share a call"
        measured(
            f"no verdict within {max(refusal_seconds):.3f} s at most; after the return verdicts and a lease within "
            f"{recovery_seconds:.2f} s, by {asked} calls for {KEYS} keys and {outcomes.total()} requests"
        )


async def first_verdicts(validator: KeyValidator, keys: list[ApiKey]) -> Counter[Verdict | None]:
    """Ask for the keys again and again, all at once, until each has a verdict; return the outcomes."""
    outcomes: Counter[Verdict | None] = Counter()

    async def ask(key: ApiKey) -> None:
        while (verdict := await outcome(validator, key)) is None:
            outcomes[None] += 1
        outcomes[verdict] += 1

    await asyncio.gather(*map(ask, keys))
    return outcomes


async def test_holders_come_back_one_after_the_other(tmp_path: Path, clock: Clock, measured: Measured) -> None:
    """Each waits for a time of its own, so that a service that restarts is not met by all at once."""
    async with AsyncExitStack() as stack:
        async with running(tmp_path / "state", **LEASE) as service:
            validators = [KeyValidator(service.address, bridge_token(service), clock=clock) for _ in range(HOLDERS)]
            for validator in validators:
                await stack.enter_async_context(validator)
            await until("all have leases", lambda: all(validator.has_lease for validator in validators))
        for _ in range(int(LEASE_SECONDS) + 5):
            clock.now += 1.0
            await asyncio.sleep(0.01)  # for attempts to connect, which fail
        assert not any(validator.has_lease for validator in validators)
        loop = asyncio.get_running_loop()
        service = await stack.enter_async_context(
            running(tmp_path / "state", **LEASE, AUTHSVC_LISTEN=str(service.address))
        )
        came_back_at = loop.time()
        await until("all have leases", lambda: all(validator.has_lease for validator in validators))
        assert loop.time() - came_back_at < RECOVERY_SECONDS_MAX
        listed = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
        renewed = sorted(holder.renew_time.ToNanoseconds() / 1e9 for holder in listed.holders)
        assert len(renewed) == HOLDERS
        assert renewed[-1] - renewed[0] > SPREAD_SECONDS_MIN
        measured(f"{HOLDERS} holders came back within {renewed[-1] - renewed[0]:.2f} s")

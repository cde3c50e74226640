"""The validator's stream to the key service: it comes back whatever happens to it, and ends with a release."""

import asyncio
import gc
from pathlib import Path

import grpc
import pytest
import trustme

from authsvc.client.api_key import ApiKey, Digest
from authsvc.client.channel import ClientTls, TokenFile
from authsvc.client.validator import KeyValidator
from authsvc.client.verdict_cache import VerdictCache
from authsvc.client.verdicts import Decision, KeyServiceUnavailableError, Verdict
from authsvc.runtime.environment import Address
from tests.authsvc.client.client_log import client_events
from tests.authsvc.client.fake_key_service import BRIDGE_TOKEN, FakeKeyService, Stream, serve
from tests.clocks import Clock
from tests.e2e.tcp_proxy import TcpProxy
from tests.waiting import until

KEY = ApiKey("dt_0123456789abcdef01234567")
ALLOWED = Decision(Verdict.ALLOWED, "demo", "key_0123456789abcdef")
BACK_OFF_SECONDS_MAX = 2.0


async def reopened(service: FakeKeyService, clock: Clock, number: int) -> Stream:
    """Return the stream with this number, moving the clock through the back-off before it."""
    clock.now += BACK_OFF_SECONDS_MAX
    return await service.stream(number)


async def test_a_stream_opens_with_who_the_holder_is_and_a_lease_is_renewed_every_ten_seconds(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    stream = await service.stream()
    first = stream.requests[0]
    assert (first.epoch, first.name, first.applied_revision, first.release) == ("", "bridge-1", 0, False)
    assert len(first.holder_id) == 32
    assert stream.authorization == f"Bearer {BRIDGE_TOKEN}"
    clock.now += 10.0
    keep_alive = await stream.request(lambda request: request.sequence == 3)
    assert (keep_alive.epoch, keep_alive.holder_id, keep_alive.applied_revision) == ("epoch-1", first.holder_id, 1)


async def test_a_short_lease_is_renewed_as_often_as_it_needs(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    service.lease_seconds = 3.0
    async with KeyValidator(address, service.token, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        clock.now += 1.0
        await (await service.stream()).request(lambda request: request.sequence == 3)


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_a_stream_that_ends_is_opened_anew_from_where_it_was(
    service: FakeKeyService, validator: KeyValidator, clock: Clock, status: grpc.StatusCode
) -> None:
    """Meanwhile the cache is used to the lease's end, and nothing is forgotten: it resumes (rule 6)."""
    await validator.validate(KEY)
    first = await service.stream()
    await service.mutate()
    first.end(status)
    await first.is_over.wait()
    assert validator.cached(KEY) == ALLOWED
    second = await reopened(service, clock, 2)
    request = await second.request(lambda _: True)
    assert (request.epoch, request.applied_revision) == ("epoch-1", 2)
    assert request.holder_id == first.requests[0].holder_id
    assert request.sequence > first.requests[-1].sequence
    await service.mutate(KEY)
    assert validator.cached(KEY) is None


@pytest.mark.parametrize("is_leaving", [False, True])
async def test_the_error_that_ends_a_stream_is_let_go_of_without_the_garbage_collector(
    service: FakeKeyService, validator: KeyValidator, is_leaving: bool
) -> None:
    """And with it the connection, whose frames it holds."""
    stream = await service.stream()
    gc.collect()
    gc.disable()
    try:
        if is_leaving:
            service.takes_release = False
            closing = asyncio.create_task(validator.close())
            await stream.request(lambda request: request.release)
            service.takes_release = True
        stream.end(grpc.StatusCode.UNAVAILABLE)
        await (closing if is_leaving else service.stream(2))
        kept = [found for found in gc.get_objects() if isinstance(found, grpc.aio.AioRpcError)]
        assert kept == []
    finally:
        gc.enable()


async def test_a_missing_change_breaks_the_stream(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """It is neither applied nor acknowledged; the stream is opened anew from the last one that was."""
    await validator.validate(KEY)
    stream = await service.stream()
    await stream.change(3, KEY)
    await stream.is_over.wait()
    request = await (await reopened(service, clock, 2)).request(lambda _: True)
    assert request.applied_revision == 1
    assert validator.cached(KEY) == ALLOWED


async def test_a_change_that_comes_again_is_ignored(service: FakeKeyService, validator: KeyValidator) -> None:
    stream = await service.stream()
    await service.mutate()
    await validator.validate(KEY)  # at revision 1: used once
    service.answer.revision = 2
    await validator.validate(KEY)
    await stream.change(2, KEY)
    await stream.change(1, KEY)
    await service.mutate()
    assert validator.cached(KEY) == ALLOWED
    assert not stream.is_over.is_set()


async def test_an_event_that_is_not_known_breaks_the_stream(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """It may void verdicts."""
    stream = await service.stream()
    await stream.unknown()
    await stream.is_over.wait()
    await (await reopened(service, clock, 2)).request(lambda _: True)


async def test_nothing_that_a_stream_brings_ends_the_watching(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """Otherwise there would be no lease any more until a restart. Such as a duration that has no room in Python's."""
    stream = await service.stream()
    with client_events() as logs:
        await stream.lease(99, 1e18, 1)
        await stream.is_over.wait()
        await (await reopened(service, clock, 2)).request(lambda _: True)
    [said] = [entry for entry in logs if entry["event"] == "watch_failed"]
    assert said["log_level"] == "error"
    assert "ToTimedelta" in said["traceback"]
    await service.mutate(KEY)


async def test_a_stream_without_a_lease_is_given_up_after_five_seconds(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    """It may be half open: connected, and nothing arrives."""
    service.lease_seconds = 0
    validator = KeyValidator(address, service.token, clock=clock)
    validator.start()
    stream = await service.stream()
    await stream.request(lambda _: True)
    clock.now += 4.9
    await stream.change(0)  # of no effect, but that the holder looks at the clock
    await asyncio.sleep(0)
    assert not stream.is_over.is_set()
    clock.now += 0.2
    await stream.is_over.wait()
    service.lease_seconds = 600.0
    await reopened(service, clock, 2)
    await until("it has a lease", lambda: validator.has_lease)
    await validator.close()


async def test_a_stream_of_changes_without_a_lease_is_given_up_too(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    """However many there are, and though the next one is always there."""

    class SlowCache(VerdictCache):
        """Takes a second for each change."""

        def drop(self, digest: Digest) -> None:
            clock.now += 1.0

    async with KeyValidator(address, service.token, cache=SlowCache(), clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        stream = await service.stream()
        service.lease_seconds = 0
        await asyncio.gather(*(stream.change(revision, KEY) for revision in range(2, 102)), return_exceptions=True)
        await stream.is_over.wait()
        request = await (await reopened(service, clock, 2)).request(lambda _: True)
        assert request.applied_revision < 10


async def test_a_lease_whose_changes_do_not_come_is_none(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """A service that grants leases and has lost the changes before them: the stream is given up as well."""
    service.revision = 7
    stream = await service.stream()
    clock.now += 10.0
    await stream.request(lambda request: request.sequence == 3)
    clock.now += 5.0
    await stream.is_over.wait()


async def test_a_connection_that_swallows_everything_is_given_up_and_tried_again(clock: Clock) -> None:
    tried = [asyncio.Event() for _ in range(2)]
    writers = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if len(writers) <= len(tried):
            tried[len(writers) - 1].set()
        await reader.read()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    validator = KeyValidator(Address("127.0.0.1", server.sockets[0].getsockname()[1]), BRIDGE_TOKEN, clock=clock)
    validator.start()
    for event in tried:
        await event.wait()
        clock.now += 5.0
        await asyncio.sleep(0)
        clock.now += BACK_OFF_SECONDS_MAX
    clock.now += 5.0
    closing = asyncio.create_task(validator.close())
    await asyncio.sleep(0)
    clock.now += 2.0
    await closing
    for writer in writers:
        writer.close()
    server.close()


async def test_the_back_off_is_jittered_and_at_most_two_seconds(
    service: FakeKeyService, validator: KeyValidator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the outage was, a lease is back within seconds; a lease makes the next one short again."""
    waits: list[float] = []

    def longest(low: float, high: float) -> float:
        waits.append(low)
        return high

    monkeypatch.setattr("random.uniform", longest)
    service.lease_seconds = 0
    for number in range(1, 10):
        stream = await reopened(service, clock, number)
        stream.end(grpc.StatusCode.UNAVAILABLE)
        await until("it waits", lambda number=number: len(waits) == number)
    assert waits == [0.5] * 9
    clock.now += 1.9
    await asyncio.sleep(0)
    assert len(service.streams) == 9
    service.lease_seconds = 600.0
    clock.now += 0.1
    await service.stream(10)


async def test_a_lease_counts_from_before_its_keep_alive_was_handed_to_the_transport(
    service: FakeKeyService, address: Address, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2: not from when a slow connection took it, which here is three seconds later."""
    monkeypatch.setattr("random.uniform", lambda _low, high: 100 * high)  # a back-off that only the clock ends
    service.lease_seconds = 30.0
    async with TcpProxy(str(address)) as proxy, KeyValidator(proxy.address, service.token, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        (await service.stream()).end(grpc.StatusCode.UNAVAILABLE)
        await until("it is cut off", lambda: proxy.connections == 0)
        proxy.cut()
        clock.now += 30.0
        await until("it has a lease", lambda: not validator.has_lease)
        opened_at = clock.now
        await until("it connects", lambda: proxy.connections == 1)
        clock.now += 3.0
        proxy.heal()
        await until("it has a lease", lambda: validator.has_lease)
        assert [request.applied_revision for request in service.streams[1].requests] == [1], "it resumed"
        service.lease_seconds = 0
        clock.now = opened_at + 29.9
        assert validator.has_lease
        clock.now = opened_at + 30.0
        assert not validator.has_lease


async def test_a_service_that_restarts_is_found_again_and_resumed(service: FakeKeyService, clock: Clock) -> None:
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    async with KeyValidator(Address("127.0.0.1", port), service.token, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        await validator.validate(KEY)
        for number in (2, 3):
            await server.stop(None)
            assert validator.cached(KEY) == ALLOWED
            server, _port = serve(service, f"127.0.0.1:{port}")
            await server.start()
            request = await (await service.stream(number)).request(lambda _: True)
            assert (request.epoch, request.applied_revision) == ("epoch-1", 1)
    await server.stop(None)


async def test_a_refused_token_is_read_anew(
    service: FakeKeyService, address: Address, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "bridge-token"
    path.write_text(BRIDGE_TOKEN[::-1])
    async with KeyValidator(address, TokenFile(path), clock=clock) as validator:
        await service.stream()
        path.write_text(service.token)
        await reopened(service, clock, 2)
        await until("it has a lease", lambda: validator.has_lease)


async def test_a_token_that_is_not_there_yet_is_waited_for(
    service: FakeKeyService, address: Address, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "bridge-token"
    async with KeyValidator(address, TokenFile(path), clock=clock) as validator:
        await asyncio.sleep(0)
        path.write_text(service.token)
        await reopened(service, clock, 1)
        await until("it has a lease", lambda: validator.has_lease)


async def test_the_stream_is_encrypted_like_the_calls(
    service: FakeKeyService,
    clock: Clock,
    authority: trustme.CA,
    server_certificate: grpc.ServerCredentials,
    tmp_path: Path,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server, port = serve(service, "127.0.0.1:0", server_certificate)
    await server.start()
    tls = ClientTls(tmp_path / "ca.pem")
    async with KeyValidator(f"localhost:{port}", service.token, tls=tls, clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
    await server.stop(None)


async def test_closing_gives_the_cache_up_then_says_release_and_waits_until_it_is_taken(
    service: FakeKeyService, address: Address, validator: KeyValidator, clock: Clock
) -> None:
    await validator.validate(KEY)
    service.takes_release = False
    closing = asyncio.create_task(validator.close())
    await asyncio.sleep(0)
    assert not validator.has_lease
    assert validator.cached(KEY) is None
    stream = await service.stream()
    release = await stream.request(lambda request: request.release)
    assert release.holder_id == stream.requests[0].holder_id
    async with KeyValidator(address, service.token, clock=clock) as another:
        for _ in range(5):
            await another.validate(KEY)
        service.takes_release = True
    assert not closing.done()
    await stream.lease(release.sequence, 600.0, 1)  # a late one is of no use to who has released its lease
    stream.end()
    await closing
    assert not validator.has_lease
    assert stream.requests[-1] is release
    with pytest.raises(KeyServiceUnavailableError, match="closed"):
        await validator.validate(KEY)
    await validator.close()


async def test_a_service_that_never_takes_the_release_does_not_keep_its_caller(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    service.takes_release = False
    closing = asyncio.create_task(validator.close())
    stream = await service.stream()
    await stream.request(lambda request: request.release)
    clock.now += 1.0
    await closing
    await stream.is_over.wait()


async def test_who_stops_while_no_stream_is_open_says_release_on_one_more(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """Revocations would wait for its lease to end, though the service is there: it restarted a moment ago, say."""
    stream = await service.stream()
    stream.end(grpc.StatusCode.UNAVAILABLE)
    await stream.is_over.wait()
    assert validator.has_lease
    await validator.close()
    _, last = service.streams
    [release] = last.requests
    assert release.release
    assert release.holder_id == stream.requests[0].holder_id
    assert release.sequence > stream.requests[-1].sequence


async def test_a_release_that_its_stream_did_not_outlive_is_said_again(
    service: FakeKeyService, validator: KeyValidator
) -> None:
    """As when the replica stops in the same moment: another one takes it."""
    service.takes_release = False
    closing = asyncio.create_task(validator.close())
    stream = await service.stream()
    await stream.request(lambda request: request.release)
    service.takes_release = True
    stream.end(grpc.StatusCode.UNAVAILABLE)
    await closing
    assert [request.release for request in service.streams[1].requests] == [True]


async def test_who_never_sent_a_keep_alive_has_nothing_to_say(
    service: FakeKeyService, address: Address, clock: Clock, tmp_path: Path
) -> None:
    async with KeyValidator(address, TokenFile(tmp_path / "token"), clock=clock) as validator:
        with pytest.raises(KeyServiceUnavailableError):
            await validator.validate(KEY)
        (tmp_path / "token").write_text(BRIDGE_TOKEN)
    assert not service.streams


async def test_a_release_is_owed_for_a_keep_alive_whose_lease_never_came(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    """It may have been committed: revocations would wait for its row."""
    service.lease_seconds = 0
    async with KeyValidator(address, service.token, clock=clock) as validator:
        stream = await service.stream()
        stream.end(grpc.StatusCode.UNAVAILABLE)
        await stream.is_over.wait()
        assert not validator.has_lease
    assert [request.release for request in service.streams[1].requests] == [True]


async def test_a_release_is_owed_for_a_lease_that_has_ended(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    """Its row lasts for the margin more."""
    stream = await service.stream()
    stream.end(grpc.StatusCode.UNAVAILABLE)
    await stream.is_over.wait()
    clock.now += service.lease_seconds
    assert not validator.has_lease
    await validator.close()
    assert any(request.release for each in service.streams[1:] for request in each.requests)


@pytest.mark.parametrize("turns", range(8))
async def test_a_release_is_said_whenever_the_stream_ends(
    service: FakeKeyService, validator: KeyValidator, turns: int
) -> None:
    """Before, while or after the holder begins to leave."""
    stream = await service.stream()
    stream.end(grpc.StatusCode.UNAVAILABLE)
    for _ in range(turns):
        await asyncio.sleep(0)
    await validator.close()
    assert any(request.release for each in service.streams for request in each.requests)


async def test_a_last_stream_that_nobody_answers_does_not_keep_its_caller(
    service: FakeKeyService, validator: KeyValidator, clock: Clock
) -> None:
    stream = await service.stream()
    stream.end(grpc.StatusCode.UNAVAILABLE)
    await stream.is_over.wait()
    service.takes_release = False
    closing = asyncio.create_task(validator.close())
    last = await service.stream(2)
    await last.request(lambda request: request.release)
    clock.now += 1.0
    await closing
    await last.is_over.wait()


@pytest.fixture
async def nobody() -> Address:
    """Where connections are refused."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return Address("127.0.0.1", port)


async def test_closing_does_not_wait_for_a_service_that_is_not_there(nobody: Address, clock: Clock) -> None:
    """There is no stream to release the lease on."""
    validator = KeyValidator(nobody, BRIDGE_TOKEN, clock=clock)
    with pytest.raises(KeyServiceUnavailableError):
        await validator.validate(KEY)
    started = asyncio.get_running_loop().time()
    await validator.close()
    assert asyncio.get_running_loop().time() - started < 1.0


async def test_the_lease_is_logged_when_it_comes_and_when_it_is_lost(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    service.lease_seconds = 30.0
    with client_events() as logs:
        async with KeyValidator(address, service.token, clock=clock) as validator:
            await until("it has a lease", lambda: validator.has_lease)
            stream = await service.stream()
            service.lease_seconds = 0
            clock.now += 10.0
            await stream.request(lambda request: request.sequence == 3)
            clock.now += 5.0
            await stream.is_over.wait()
            clock.now += 15.0
            await reopened(service, clock, 2)
            clock.now += 5.0
            service.lease_seconds = 30.0
            await reopened(service, clock, 3)
            await until("it has a lease", lambda: validator.has_lease)
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["log_level"] != "debug"] == [
        ("lease_granted", "info"),
        ("lease_lost", "warning"),
        ("lease_granted", "info"),
    ]


async def test_a_lease_is_logged_as_lost_when_it_ends_whatever_the_stream_does(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    """Also while an answer is being waited for, which then brings the next one."""
    service.lease_seconds = 3.0
    with client_events() as logs:

        def noted() -> list[str]:
            return [entry["event"] for entry in logs if entry["log_level"] != "debug"]

        async with KeyValidator(address, service.token, clock=clock) as validator:
            await until("it has a lease", lambda: validator.has_lease)
            stream = await service.stream()
            service.lease_seconds = 0
            clock.now += 1.0
            keep_alive = await stream.request(lambda request: request.sequence == 3)
            clock.now += 2.0
            await until("it is told", lambda: noted() == ["lease_granted", "lease_lost"])
            await stream.lease(keep_alive.sequence, 600.0, 1)
            await until("it has a lease", lambda: validator.has_lease)
            await until("it is told", lambda: noted() == ["lease_granted", "lease_lost", "lease_granted"])
    assert len(service.streams) == 1

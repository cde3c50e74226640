"""Validate from memory: only while the service is busy, only under a live lease, and as right as from the database."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.app import renew_epoch
from authsvc.client.api_key import Digest
from authsvc.config import Config
from authsvc.keys import generate_api_key
from authsvc.revocation import key_cache as index_module
from authsvc.revocation.key_cache import CachedKeys
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import Snapshot
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.watching import Watcher, ended, issue, replica, revoke
from tests.postgres import PostgresServer


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def known(keys: CachedKeys[str], number: int) -> bool:
    try:
        keys.get(digest(number))
    except KeyError:
        return False
    return True


def test_the_least_recently_used_digest_leaves_first_and_each_room_is_bounded() -> None:
    keys: CachedKeys[str] = CachedKeys(keys_max=2, unknown_max=2)
    for number in (1, 2):
        keys.put(digest(number), f"key {number}")
        keys.put(digest(10 + number), None)
    assert (keys.get(digest(1)), keys.get(digest(11))) == ("key 1", None)
    keys.put(digest(3), "key 3")
    keys.put(digest(13), None)
    assert [number for number in range(20) if known(keys, number)] == [1, 3, 11, 13]


def test_a_flood_of_unknown_keys_pushes_out_no_good_one() -> None:
    keys: CachedKeys[str] = CachedKeys(keys_max=2, unknown_max=2)
    keys.put(digest(1), "key")
    for number in range(2, 1000):
        keys.put(digest(number), None)
    assert keys.get(digest(1)) == "key"


def test_a_change_voids_what_is_known_of_a_digest_either_way() -> None:
    keys: CachedKeys[str] = CachedKeys()
    keys.put(digest(1), "key")
    keys.put(digest(2), None)
    keys.drop(digest(1))
    keys.drop(digest(2))
    keys.drop(digest(3))
    assert not any(known(keys, number) for number in (1, 2, 3))


class Reads:
    """Counts the digests that are looked up in the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.digests = 0
        lookup = KeyStore.lookup

        async def counted(store: KeyStore, digests: Sequence[Digest]) -> Snapshot:
            self.digests += len(digests)
            return await lookup(store, digests)

        monkeypatch.setattr(KeyStore, "lookup", counted)


async def validate(service: Service, api_key: str, origin: str | None = None) -> Any:
    request = pb.ValidateRequest(api_key=api_key, origin=origin)
    return await service.keys.Validate(request, metadata=service.token("bridge"))


async def batch(service: Service, *api_keys: str) -> list[Any]:
    request = pb.BatchValidateRequest(requests=[pb.ValidateRequest(api_key=api_key) for api_key in api_keys])
    return list((await service.keys.BatchValidate(request, metadata=service.token("bridge"))).responses)


async def holders(service: Service) -> list[pb.Holder]:
    answer = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
    return list(answer.holders)


async def warm(service: Service, *api_keys: str) -> None:
    """Make the service busy until it knows these keys."""
    parsed = {generate_api_key().reveal(): None} | dict.fromkeys(api_keys)
    async with asyncio.timeout(60):
        while True:
            with pytest.MonkeyPatch.context() as monkeypatch:
                reads = Reads(monkeypatch)
                await batch(service, *([*parsed] * (250 // len(parsed))))
                if not reads.digests:
                    return


async def test_a_busy_service_answers_from_memory_what_it_has_read_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good keys and unknown ones, one or many at a time, with the revision that this is known as of."""
    api_key = (await issue(service)).api_key
    unknown = generate_api_key().reveal()
    cold = await validate(service, api_key), await validate(service, unknown)
    await warm(service, api_key, unknown)
    reads = Reads(monkeypatch)
    assert (await validate(service, api_key), await validate(service, unknown)) == cold
    assert tuple(await batch(service, api_key, unknown)) == cold
    assert reads.digests == 0
    await issue(service, "other")
    for response, before in zip(await batch(service, api_key, unknown), cold, strict=True):
        assert (response.verdict, response.epoch, response.revision) == (before.verdict, before.epoch, 2)
    assert reads.digests == 0


async def test_an_idle_service_holds_no_lease_and_reads_each_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_key = (await issue(service)).api_key
    reads = Reads(monkeypatch)
    for _ in range(20):
        await validate(service, api_key)
    assert reads.digests == 20
    assert await holders(service) == []


async def test_the_index_is_a_holder_with_a_name_and_a_short_lease_that_is_no_bridge(service: Service) -> None:
    await warm(service)
    [holder] = await holders(service)
    assert holder.name.startswith("authsvc ")
    assert holder.name.endswith(f":{os.getpid()}")
    assert holder.lease_expire_time.ToNanoseconds() - holder.renew_time.ToNanoseconds() == 10 * 10**9
    propagation = (await issue(service)).propagation
    assert (propagation.effective, len(propagation.confirmed), len(propagation.pending)) == (True, 0, 0)
    [holder] = await holders(service)
    assert holder.acknowledged_revision == 1


async def test_it_says_release_when_it_is_idle_and_comes_back_under_another_id(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_key = (await issue(service)).api_key
    await warm(service, api_key)
    [before] = await holders(service)
    monkeypatch.setattr(index_module, "_IDLE_SECONDS", 0.0)
    await batch(service, *[api_key] * 250)
    async with asyncio.timeout(60):
        while await holders(service):
            pass
    monkeypatch.setattr(index_module, "_IDLE_SECONDS", 10.0)
    await warm(service, api_key)
    [after] = await holders(service)
    assert after.holder_id != before.holder_id


async def test_a_service_that_stops_leaves_no_lease_to_wait_for(tmp_path: Path) -> None:
    async with running(tmp_path / "state") as service:
        await issue(service)
        await warm(service)
    async with running(tmp_path / "state") as service:
        assert await holders(service) == []
        assert (await revoke(service, wait_seconds=0)).propagation.effective


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that counts while suspended")
async def test_its_lease_runs_out_while_the_machine_is_suspended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 12: by the clock that goes on then, as the database's does."""
    slept, read = 0.0, time.clock_gettime
    boot = time.CLOCK_BOOTTIME
    monkeypatch.setattr(time, "clock_gettime", lambda which: read(which) + slept * (which == boot))
    async with running(tmp_path / "state") as service:
        api_key = (await issue(service)).api_key
        await warm(service, api_key)

        async def never(*_: Any) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(LeaseStore, "renew", never)  # of what is asked for after the sleep
            reads = Reads(patch)
            await validate(service, api_key)
            assert reads.digests == 0
            slept = 60.0
            await validate(service, api_key)
            assert reads.digests == 1


async def test_what_a_call_changed_is_so_when_it_returns(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 5: a revoked key is refused, a key that was probed before works, and a new origin list applies."""
    api_key = (await issue(service)).api_key
    await warm(service, api_key)
    for _ in range(20):
        revoked = await revoke(service)
        assert revoked.propagation.effective
        assert (await validate(service, api_key)).verdict == pb.VERDICT_INVALID_KEY
        api_key = revoked.api_key
        assert (await validate(service, api_key)).verdict == pb.VERDICT_ALLOWED
    probed = generate_api_key()
    assert (await validate(service, probed.reveal())).verdict == pb.VERDICT_INVALID_KEY
    monkeypatch.setattr("authsvc.api.key_service.generate_api_key", lambda: probed)
    await issue(service, "probed")
    assert (await validate(service, probed.reveal())).verdict == pb.VERDICT_ALLOWED
    for origins, expected in ((["a.test"], pb.VERDICT_ORIGIN_NOT_ALLOWED), ([], pb.VERDICT_ALLOWED)):
        request = pb.SetOriginsRequest(project_id="demo", origins=origins)
        await service.keys.SetOrigins(request, metadata=service.token())
        assert (await validate(service, api_key, "https://b.test")).verdict == expected
        assert (await validate(service, api_key, "https://a.test")).verdict == pb.VERDICT_ALLOWED


async def test_what_was_read_before_a_change_is_not_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 4: the answer to a slow look-up, which a revocation overtook, decides its own request alone."""
    api_key = (await issue(service)).api_key
    await warm(service)
    lookup, read, go_on = KeyStore.lookup, asyncio.Event(), asyncio.Event()

    async def slow(store: KeyStore, digests: Sequence[Digest]) -> Snapshot:
        snapshot = await lookup(store, digests)
        read.set()
        await go_on.wait()
        return snapshot

    monkeypatch.setattr(KeyStore, "lookup", slow)
    overtaken = asyncio.ensure_future(validate(service, api_key))
    await read.wait()
    assert (await revoke(service)).propagation.effective
    go_on.set()
    assert ((await overtaken).verdict, (await overtaken).revision) == (pb.VERDICT_ALLOWED, 1)
    assert (await validate(service, api_key)).verdict == pb.VERDICT_INVALID_KEY


async def test_a_new_epoch_empties_the_index(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    api_key = (await issue(service)).api_key
    await warm(service, api_key)
    before = (await validate(service, api_key)).epoch
    reads = Reads(monkeypatch)
    await renew_epoch(Config.from_environment({"AUTHSVC_STATE_DIR": str(service.state_dir)}))
    async with asyncio.timeout(60):
        while (await validate(service, api_key)).epoch == before:
            pass
    assert reads.digests > 0


async def test_without_its_database_it_answers_to_the_end_of_its_lease(
    private_postgres: PostgresServer, tmp_path: Path
) -> None:
    """And then no more: what it does not know it never makes up."""
    async with replica(tmp_path / "state", private_postgres.url("migrated")) as service:
        api_key, unknown = (await issue(service)).api_key, generate_api_key().reveal()
        await warm(service, api_key)
        await asyncio.to_thread(private_postgres.stop)
        good, missing = await batch(service, api_key, unknown)
        assert (good.verdict, missing) == (pb.VERDICT_ALLOWED, pb.ValidateResponse())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await validate_for_ever(service, api_key)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(private_postgres.start)
        await warm(service, api_key)


async def validate_for_ever(service: Service, api_key: str) -> None:
    async with asyncio.timeout(60):
        while True:
            assert (await validate(service, api_key)).verdict == pb.VERDICT_ALLOWED


async def test_nobody_else_may_take_an_indexs_id(service: Service) -> None:
    """Who could release the lease for it would have it answer while revocations do not wait."""
    await warm(service)
    [holder] = await holders(service)
    watcher = Watcher(service)
    watcher.holder_id = holder.holder_id
    await watcher.renew(release=True)
    code, text = await ended(watcher.call)
    assert (code, "holder_id" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert [it.holder_id for it in await holders(service)] == [holder.holder_id]

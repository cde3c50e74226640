"""Reading leases for all who wait for a change to hold, with a database that answers when a test says so."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from authsvc.errors import StoreUnavailableError
from authsvc.revocation.change_feed import Notifier
from authsvc.revocation.lessor import LeaseReader


class Leases:
    """Looks at the leases, each of which a test ends."""

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[Any]] = []
        self.begun = asyncio.Semaphore(0)

    async def rows(self) -> Any:
        self.looks.append(asyncio.get_running_loop().create_future())
        self.begun.release()
        return await self.looks[-1]


class Reading:
    """A reader, and those who ask it."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.feed = SimpleNamespace(leases_moved=Notifier())
        self._reader = LeaseReader(cast(Any, self.leases), cast(Any, self.feed))

    async def ask(self) -> "asyncio.Task[Any]":
        task = asyncio.create_task(self._reader.rows())
        await asyncio.sleep(0)  # until it waits
        return task


async def test_all_who_come_during_a_look_share_the_next_one() -> None:
    reading = Reading()
    first = await reading.ask()
    others = [await reading.ask() for _ in range(5)]
    reading.leases.looks[0].set_result("first")
    assert await first == "first"
    await reading.leases.begun.acquire()
    await reading.leases.begun.acquire()
    assert not any(task.done() for task in others)
    reading.leases.looks[1].set_result("second")
    assert await asyncio.gather(*others) == ["second"] * 5
    assert len(reading.leases.looks) == 2


async def test_a_look_that_fails_fails_for_all_whose_it_is_and_no_others() -> None:
    reading = Reading()
    first = await reading.ask()
    others = [await reading.ask() for _ in range(2)]
    reading.leases.looks[0].set_exception(StoreUnavailableError("the test says so"))
    with pytest.raises(StoreUnavailableError):
        await first
    for _ in range(2):
        await reading.leases.begun.acquire()
    reading.leases.looks[1].set_exception(StoreUnavailableError("the test says so"))
    assert [type(it) for it in await asyncio.gather(*others, return_exceptions=True)] == [StoreUnavailableError] * 2
    last = await reading.ask()
    reading.leases.looks[2].set_result("third")
    assert await last == "third"


async def test_a_look_that_is_given_up_by_whoever_began_it_is_begun_anew_by_the_next() -> None:
    reading = Reading()
    first = await reading.ask()
    later, last = await reading.ask(), await reading.ask()
    reading.leases.looks[0].set_result("first")
    await first
    for _ in range(2):
        await reading.leases.begun.acquire()
    later.cancel()
    await reading.leases.begun.acquire()
    reading.leases.looks[2].set_result("third")
    assert await last == "third"
    assert later.cancelled()


async def test_those_who_still_wait_are_told_to_look_again_after_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authsvc.revocation.lessor._POLL_SECONDS", 0.0)
    reading = Reading()
    moved = reading.feed.leases_moved.next()
    asked = await reading.ask()
    reading.leases.looks[0].set_result("first")
    await asked
    async with asyncio.timeout(5):
        await moved.wait()

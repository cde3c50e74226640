"""One run for many who ask."""

import asyncio

import pytest

from authsvc.runtime.gather import Gather


class Runs:
    """Records what goes into each run, and holds them until `go_on` is set."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None
        self.spared: list[str] = []

    async def __call__(self, group: list[str]) -> str:
        self.groups.append(group)
        await self.go_on.wait()
        if self.error is not None and group[0] not in self.spared:
            raise self.error
        return "+".join(group)


async def test_what_has_the_same_key_goes_into_different_runs_and_the_rest_is_not_kept_waiting() -> None:
    runs = Runs()
    gather = Gather(runs, key=lambda item: item[0])
    asking = [asyncio.create_task(gather.ask(item)) for item in ("a1", "a2", "b1", "a3", "b2")]
    runs.go_on.set()
    assert await asyncio.gather(*asking) == ["a1+b1", "a2+b2", "a1+b1", "a3", "a2+b2"]
    assert runs.groups == [["a1", "b1"], ["a2", "b2"], ["a3"]]


async def test_a_run_that_fails_fails_nobody_else() -> None:
    runs = Runs()
    gather = Gather(runs)
    first = asyncio.create_task(gather.ask("first"))
    await asyncio.sleep(0)
    second = asyncio.create_task(gather.ask("second"))
    await asyncio.sleep(0)
    runs.error, runs.spared = ValueError("the test says so"), ["second"]
    runs.go_on.set()
    with pytest.raises(ValueError, match="the test says so"):
        await first
    assert await second == "second"


async def test_closing_cancels_all_who_wait_and_who_come_later() -> None:
    runs = Runs()
    gather = Gather(runs)
    asking = [asyncio.create_task(gather.ask("first"))]
    await asyncio.sleep(0)
    asking.append(asyncio.create_task(gather.ask("second")))
    await asyncio.sleep(0)
    await gather.close()
    asking.append(asyncio.create_task(gather.ask("third")))
    await asyncio.wait(asking)
    assert all(task.cancelled() for task in asking)
    assert runs.groups == [["first"]]


async def test_a_run_that_fails_can_fail_those_who_wait_behind_it_and_nobody_after_them() -> None:
    runs = Runs()
    gather = Gather(runs, fails_waiting=True)
    first = asyncio.create_task(gather.ask("first"))
    await asyncio.sleep(0)
    second = asyncio.create_task(gather.ask("second"))
    await asyncio.sleep(0)
    runs.error = ValueError("the test says so")
    runs.go_on.set()
    assert [*await asyncio.gather(first, second, return_exceptions=True)] == [runs.error, runs.error]
    runs.error = None
    assert await gather.ask("third") == "third"
    assert runs.groups == [["first"], ["third"]]


async def test_what_waits_is_bounded_by_its_size_and_a_run_takes_one_at_least() -> None:
    runs = Runs()
    gather = Gather(runs, size=len, group_size_max=3, waiting_size_max=6)
    first = asyncio.create_task(gather.ask("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking = [asyncio.create_task(gather.ask(item)) for item in ("larger", "b")]
    await asyncio.sleep(0)
    with pytest.raises(asyncio.QueueFull):
        await asking[1]
    asking[0].cancel()
    asking[1] = asyncio.create_task(gather.ask("bb"))
    asking += [asyncio.create_task(gather.ask("ccc"))]
    await asyncio.sleep(0)
    runs.go_on.set()
    assert await first == "a"
    assert await asyncio.gather(*asking[1:]) == ["bb", "ccc"]
    assert runs.groups == [["a"], ["bb"], ["ccc"]]

"""Group commit, against a store whose every commit the test decides."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import pytest
from structlog.testing import capture_logs

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.fair_queue import Bounds
from httpbridge.log_store.group_commit import GroupCommit

Outcome: TypeAlias = "BaseException | None"


class Store:
    """Keeps what is committed; `gate` holds commits back, `refuses` decides about each."""

    def __init__(self, refuses: Callable[[list[str]], Outcome] = lambda group: None) -> None:
        self.refuses = refuses
        self.tried: list[list[str]] = []
        self.stored: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def commit(self, group: list[str]) -> None:
        self.tried.append(group)
        self.entered.set()
        await self.gate.wait()
        if (error := self.refuses(group)) is not None:
            raise error
        self.stored += group


async def submit_all(group_commit: GroupCommit[str], items: str) -> list[type]:
    outcomes = await asyncio.gather(*(group_commit.submit(item, 1, "demo") for item in items), return_exceptions=True)
    return [type(outcome) for outcome in outcomes]


async def test_what_waits_during_a_commit_goes_into_the_next() -> None:
    store = Store()
    group_commit = GroupCommit(store.commit)
    store.gate.clear()
    first = asyncio.create_task(group_commit.submit("a", 1, "demo"))
    await store.entered.wait()
    others = [asyncio.create_task(group_commit.submit(item, 1, "demo")) for item in "bcd"]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(first, *others)
    assert store.tried == [["a"], ["b", "c", "d"]]
    await group_commit.close()


async def test_who_comes_back_at_once_shares_the_commit_with_those_who_waited() -> None:
    """Clients that send one batch after the other do not split into two groups that wait for each other."""
    store = Store()
    group_commit = GroupCommit(store.commit)
    store.gate.clear()

    async def submit_twice() -> None:
        await group_commit.submit("a", 1, "demo")
        await group_commit.submit("c", 1, "demo")

    again = [asyncio.create_task(submit_twice()) for _ in range(4)]
    await store.entered.wait()
    waiting = [asyncio.create_task(group_commit.submit("b", 1, "demo")) for _ in range(4)]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*again, *waiting)
    assert store.tried == [["a"] * 4, ["b"] * 4 + ["c"] * 4]
    await group_commit.close()


async def test_nobody_returns_before_the_commit_does() -> None:
    store = Store()
    group_commit = GroupCommit(store.commit)
    store.gate.clear()
    write = asyncio.create_task(group_commit.submit("a", 1, "demo"))
    await store.entered.wait()
    assert not write.done()
    store.gate.set()
    await write
    assert store.stored == ["a"]
    await group_commit.close()


async def test_a_commit_holds_no_more_than_its_weight_and_never_nothing() -> None:
    store = Store()
    group_commit = GroupCommit(store.commit, Bounds(commit_weight_max=3))
    items = [("a", 1), ("b", 2), ("c", 1), ("heavy", 100), ("d", 3), ("e", 1)]
    await asyncio.gather(*(group_commit.submit(*item, "demo") for item in items))
    assert store.tried == [["a", "b"], ["c"], ["heavy"], ["d"], ["e"]]
    await group_commit.close()


async def test_a_failed_store_is_not_tried_again_for_the_same_items() -> None:
    """The outcome of such a commit is unknown, so trying again might store twice; the next commit does try."""
    failures: list[Outcome] = [StoreUnavailableError("gone"), None]
    store = Store(lambda group: failures.pop(0))
    group_commit = GroupCommit(store.commit)
    assert await submit_all(group_commit, "abc") == [StoreUnavailableError] * 3
    await group_commit.submit("d", 1, "demo")
    assert store.tried == [["a", "b", "c"], ["d"]]
    await group_commit.close()


async def test_a_failed_store_answers_all_who_wait_and_they_are_not_stored() -> None:
    """One after the other they would each wait for the store to fail; those who come later have it tried again."""
    failures: list[Outcome] = [StoreUnavailableError("gone"), None]
    store = Store(lambda group: failures.pop(0))
    group_commit = GroupCommit(store.commit, Bounds(commit_weight_max=1, queued_weight_max=8))
    store.gate.clear()
    writes = [asyncio.create_task(group_commit.submit("a", 1, "demo"))]
    await store.entered.wait()
    writes += [asyncio.create_task(group_commit.submit(item, 1, "demo")) for item in "bcde"]
    await asyncio.sleep(0)
    store.gate.set()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["gone"] * 5
    assert await submit_all(group_commit, "f") == [type(None)]
    assert store.tried == [["a"], ["f"]]
    await group_commit.close()


async def test_closing_ends_in_time_though_the_store_does_not_answer() -> None:
    store = Store()
    store.gate.clear()
    group_commit = GroupCommit(store.commit)
    writes = [asyncio.create_task(group_commit.submit("a", 1, "demo"))]
    await store.entered.wait()
    writes.append(asyncio.create_task(group_commit.submit("b", 1, "demo")))
    await asyncio.sleep(0)
    await group_commit.close(timeout_seconds=0.01)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 2


async def test_a_defect_reaches_its_callers_and_the_writer_goes_on() -> None:
    errors: list[Outcome] = [TypeError("a defect"), None]
    store = Store(lambda group: errors.pop(0))
    group_commit = GroupCommit(store.commit)
    assert await submit_all(group_commit, "ab") == [TypeError] * 2
    await group_commit.submit("c", 1, "demo")
    await group_commit.close()


async def test_the_end_of_the_writer_leaves_nobody_hanging() -> None:
    """Those in its commit, those that wait and those that come later are all told."""
    store = Store(lambda group: asyncio.CancelledError())
    store.gate.clear()
    group_commit = GroupCommit(store.commit)
    writes = [asyncio.create_task(group_commit.submit("a", 1, "demo"))]
    await store.entered.wait()
    writes.append(asyncio.create_task(group_commit.submit("b", 1, "demo")))
    await asyncio.sleep(0)
    store.gate.set()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 2
    with pytest.raises(StoreUnavailableError):
        await group_commit.submit("c", 1, "demo")
    await group_commit.close()


async def test_a_cancelled_close_ends_at_once() -> None:
    store = Store()
    store.gate.clear()
    group_commit = GroupCommit(store.commit)
    writes = [asyncio.create_task(group_commit.submit(item, 1, "demo")) for item in "ab"]
    await store.entered.wait()
    closing = asyncio.create_task(group_commit.close())
    await asyncio.sleep(0)
    closing.cancel()
    outcomes = await asyncio.gather(closing, *writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] + [StoreUnavailableError] * 2


@pytest.mark.parametrize(
    ("bounds", "weight", "accepted"),
    [
        (Bounds(queued_items_max=6), 1, 3),  # an owner leaves as much free as it has
        (Bounds(queued_weight_max=16), 4, 2),
        (Bounds(queued_weight_max=10), 100, 1),  # what is too heavy for the queue may still go alone
    ],
)
async def test_a_full_queue_refuses_at_once_says_so_once_and_takes_again_when_there_is_room(
    bounds: Bounds, weight: int, accepted: int
) -> None:
    store = Store()
    store.gate.clear()
    group_commit = GroupCommit(store.commit, bounds)
    first = asyncio.create_task(group_commit.submit("first", weight, "demo"))
    await store.entered.wait()
    waiting = [asyncio.create_task(group_commit.submit("waiting", weight, "demo")) for _ in range(accepted)]
    await asyncio.sleep(0)
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="the queue is full"):
                await group_commit.submit("one too many", weight, "demo")
    held = {"batches": accepted, "bytes": accepted * weight, "owner": "demo", "owner_bytes": accepted * weight}
    assert logs == [{"event": "log_queue_full", "log_level": "warning", **held}]
    store.gate.set()
    await asyncio.gather(first, *waiting)
    await group_commit.submit("again", weight, "demo")
    assert store.stored == ["first", *["waiting"] * accepted, "again"]
    await group_commit.close()


# What is fair: owners are A, B, …; an item's first character says whose it is.

TURNS = Bounds(turn_weight=10, commit_weight_max=40, queued_weight_max=10**6)


async def submit_again(group_commit: GroupCommit[str], owner: str, weight: int, items: int) -> None:
    """Submit one item after the other, each once the last one is committed."""
    for number in range(items):
        await group_commit.submit(f"{owner}{number}", weight, owner)


async def test_a_light_item_waits_for_one_heavy_one_at_most() -> None:
    """Whoever else submits heavy ones, and however many; and these have their turn, although light ones never end."""
    store = Store()
    group_commit = GroupCommit(store.commit, TURNS)
    heavy = [
        asyncio.create_task(group_commit.submit(f"{owner}{number}", 100, owner))
        for number in range(5)
        for owner in "ACDE"
    ]
    light = asyncio.create_task(submit_again(group_commit, "B", 1, 300))
    await asyncio.gather(light, *heavy)
    commits = ["".join(item[0] for item in group) for group in store.tried]
    assert commits.count("B") == 300
    between = [len(run) for run in "".join(commits).rstrip("ACDE").split("B")]
    assert max(between) == 1
    await group_commit.close()


@pytest.mark.parametrize(
    "bounds", [Bounds(queued_weight_max=600, turn_weight=1), Bounds(queued_items_max=600, turn_weight=1)]
)
async def test_who_fills_the_queue_leaves_room_for_others(bounds: Bounds) -> None:
    """Each owner may have as much as it leaves free: one a half, two a third each, and the next finds room."""
    store = Store()
    store.gate.clear()
    group_commit = GroupCommit(store.commit, bounds)
    writes = [asyncio.create_task(group_commit.submit("first", 1, "first"))]
    await store.entered.wait()

    async def fill(owner: str) -> int:
        tasks = [asyncio.create_task(group_commit.submit(owner, 1, owner)) for _ in range(600)]
        await asyncio.sleep(0)
        accepted = [task for task in tasks if not task.done()]
        assert all(isinstance(task.exception(), StoreUnavailableError) for task in tasks if task.done())
        writes.extend(accepted)
        return len(accepted)

    assert [await fill(owner) for owner in "ABCDE"] == [300, 150, 75, 37, 19]
    store.gate.set()
    await asyncio.gather(*writes)
    await group_commit.close()

"""The queue before a commit: whose turn it is, and how much goes together."""

from collections import Counter

import pytest

from httpbridge.log_store.fair_queue import Bounds, FairQueue

TURN, GROUP = 10, 40
BOUNDS = Bounds(turn_weight=TURN, commit_weight_max=GROUP, queued_weight_max=10**6, queued_items_max=10**6)

Item = tuple[str, int]
"""Whose it is, and its weight."""


def filled(*items: Item) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(BOUNDS)
    for owner, weight in items:
        assert queue.add((owner, weight), weight, owner)
    return queue


def groups_of(queue: FairQueue[Item]) -> list[list[Item]]:
    groups = []
    while group := queue.next_group():
        groups.append(group)
    return groups


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({"A": 1, "B": 2, "C": 3, "D": TURN}, id="light"),
        pytest.param({"A": 11, "B": 35, "C": 200, "D": GROUP}, id="heavy"),
        pytest.param({"A": 100, "B": 150}, id="heavier than a group"),
        pytest.param({"A": 200, "B": 3, "C": 45, "D": 10}, id="both"),
    ],
)
def test_owners_share_by_weight(weights: dict[str, int]) -> None:
    """However heavy each one's items are, and however many wait: nobody is ahead by more than an item and a turn."""
    queue = filled(*[(owner, weight) for owner, weight in weights.items() for _ in range(6000 // weight)])
    taken: Counter[str] = Counter()
    while max(taken.values(), default=0) < 5000:  # nobody has run dry
        for owner, weight in queue.next_group():
            taken[owner] += weight
        for owner, weight in weights.items():
            assert max(taken.values()) - taken[owner] <= max(weights.values()) + weight + 2 * TURN


def test_owners_of_items_heavier_than_a_group_take_turns() -> None:
    queue = filled(*[(owner, 100) for owner in "AB" for _ in range(20)])
    assert "".join(owner for group in groups_of(queue) for owner, _ in group) == "AB" * 20


def test_what_an_owner_has_waiting_does_not_count_but_its_turns() -> None:
    """Many that wait for long do not come before one that has just come."""
    queue = filled(*[("A", TURN)] * 100)
    queue.next_group()
    for owner in "BC":
        queue.add((owner, 1), 1, owner)
    assert sorted(owner for owner, _ in queue.next_group()) == ["A", "B", "C"]


def test_what_waits_is_counted_after_each_group() -> None:
    items = [(owner, weight) for weight in (1, 2, 3, 50) for _ in range(10) for owner in "ABC"]
    queue = filled(*items)
    left = Counter(items)
    while group := queue.next_group():
        left -= Counter(group)
        weights = {owner: sum(weight * left[owner, weight] for weight in (1, 2, 3, 50)) for owner in "ABC"}
        assert {owner: queue.weight_of(owner) for owner in "ABC"} == weights
        assert queue.weight == sum(weights.values())
        assert queue.items == left.total()
    assert not left


def test_a_turn_may_be_longer_than_a_group() -> None:
    queue: FairQueue[int] = FairQueue(Bounds(turn_weight=10, commit_weight_max=5))
    for number in range(8):
        queue.add(number, 1, "A")
    assert [queue.next_group(), queue.next_group()] == [[0, 1, 2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize("owners", ["A", "AB", "ABCDEFGH"])
def test_a_group_is_no_heavier_than_its_bound_and_has_a_turn_of_each_owner(owners: str) -> None:
    """One owner alone fills it; who has waited with a heavy item has made up for it before."""
    items = [(owner, weight) for weight in (1, 2, 3, 5, 10) for _ in range(10) for owner in owners]
    groups = groups_of(filled(*items))
    assert Counter(item for group in groups for item in group) == Counter(items)
    for group in groups:
        assert sum(weight for _, weight in group) <= GROUP
        for owner in owners:
            assert owners == "A" or sum(weight for whose, weight in group if whose == owner) < 2 * TURN
    if owners == "A":
        assert len(groups) <= len(items) * 4.2 / (GROUP - TURN) + 1


def test_what_is_heavier_than_a_group_goes_alone_and_nothing_waits_for_nothing() -> None:
    groups = groups_of(filled(("A", 1000), ("B", 41), ("A", 1), ("C", 40)))
    assert [len(group) for group in groups if sum(weight for _, weight in group) > GROUP] == [1, 1]
    assert sum(map(len, groups)) == 4


@pytest.mark.parametrize("bounds", [Bounds(queued_weight_max=600), Bounds(queued_items_max=600)])
def test_who_fills_the_room_leaves_some_to_others(bounds: Bounds) -> None:
    """Each owner may have as much as it leaves free: one a half, two a third each, and the next finds room."""
    queue: FairQueue[str] = FairQueue(bounds)
    accepted = [sum(queue.add(owner, 1, owner) for _ in range(600)) for owner in "ABCDE"]
    assert accepted == [300, 150, 75, 37, 19]
    assert queue.items == queue.weight == sum(accepted)
    assert queue.weight_of("A") == 300
    for _ in range(3):  # and with what was taken, and comes back, each has its share
        while queue.next_group():
            pass
        assert queue.items == queue.weight == queue.weight_of("A") == 0
        held = {"A": 0, "B": 0}
        for _ in range(600):
            for owner in held:
                held[owner] += queue.add(owner, 1, owner)
        assert held == {"A": 200, "B": 200}


@pytest.mark.parametrize(("room", "accepted"), [(3, [1, 1, 0]), (4, [2, 1, 0])])
@pytest.mark.parametrize("bound", ["queued_weight_max", "queued_items_max"])
def test_who_leaves_as_much_free_as_it_has_is_taken(bound: str, room: int, accepted: list[int]) -> None:
    queue: FairQueue[str] = FairQueue(Bounds(**{bound: room}))
    assert [sum(queue.add(owner, 1, owner) for _ in range(room)) for owner in "ABC"] == accepted


def test_an_empty_queue_takes_what_is_too_heavy_for_it() -> None:
    queue: FairQueue[str] = FairQueue(Bounds(queued_weight_max=10))
    assert queue.add("a", 100, "A")
    assert not queue.add("b", 1, "B")
    assert queue.clear() == ["a"]
    assert (queue.items, queue.weight, queue.next_group()) == (0, 0, [])
    assert queue.add("b", 1, "B")

"""What waits for a store, and who is next: in turns, so that nobody waits for all that somebody else brings. Pure.

`group_commit` keeps its submitters in it. Each item has an owner (a project, say) and a weight, roughly its bytes.
Owners have turns by weight, whatever the number of their items (deficit round robin: Shreedhar and Varghese, 1995). The
room is shared, too. An owner may have as much waiting as it leaves free: one alone half of the room, two a third each,
so that there is always room for one more.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait, and how much goes into one group. Weights are bytes, roughly."""

    queued_items_max: int = 10_000
    queued_weight_max: int = 64 * 1024 * 1024
    commit_weight_max: int = 256 * 1024
    """About 1,200 entries, all of which wait for one commit. A heavier item has one of its own."""
    turn_weight: int = 64 * 1024
    """What an owner may bring into a group beside others. A heavier item goes once so many turns made up for it."""


class _Owner(msgspec.Struct, Generic[T]):
    """What one owner has waiting; there is one while it has something."""

    name: str
    waiting: deque[tuple[int, T]]
    """Weights and items."""
    weight: int = 0
    credit: int = 0
    """The weight that its turns let pass so far, less what did pass."""


class FairQueue(Generic[T]):
    """Items that wait, by owner."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._few_weight_max = min(bounds.turn_weight, bounds.commit_weight_max, bounds.queued_weight_max // 2)
        self._few_items_max = bounds.queued_items_max // 2
        self._few: list[tuple[int, T, str]] = []
        """Weights, items and owners of what came first, while there is so little that nobody need be told apart: no
        turn would leave anything of it, and nobody is short of room."""
        self._owners: dict[str, _Owner[T]] = {}
        """Those who have something waiting, but for those few."""
        self._turns: deque[_Owner[T]] = deque()
        """The same, in the order of their turns."""
        self.items = 0
        """So many wait."""
        self.weight = 0
        """Of all that wait."""

    def weight_of(self, owner: str) -> int:
        """Return the weight of what an owner has waiting."""
        self._tell_apart()
        return self._owners[owner].weight if owner in self._owners else 0

    def add(self, item: T, weight: int, owner: str) -> bool:
        """Take an item, if its owner leaves as much free with it as it has. An empty queue takes any."""
        if not self._owners and self.weight + weight <= self._few_weight_max and self.items < self._few_items_max:
            self._few.append((weight, item, owner))
            self.items += 1
            self.weight += weight
            return True
        self._tell_apart()
        mine = self._owners.get(owner)
        if self.items:
            items, held = (len(mine.waiting), mine.weight) if mine is not None else (0, 0)
            if items + 1 > self._bounds.queued_items_max - self.items - 1:
                return False
            if held + weight > self._bounds.queued_weight_max - self.weight - weight:
                return False
        self._add(item, weight, owner)
        self.items += 1
        self.weight += weight
        return True

    def _add(self, item: T, weight: int, owner: str) -> None:
        mine = self._owners.get(owner)
        if mine is None:
            mine = self._owners[owner] = _Owner(owner, deque())
            self._turns.append(mine)
        mine.waiting.append((weight, item))
        mine.weight += weight

    def _tell_apart(self) -> None:
        for weight, item, owner in self._few:
            self._add(item, weight, owner)
        self._few = []

    def clear(self) -> list[T]:
        """Take everything."""
        items = [item for _, item, _ in self._few]
        self._few = []
        if self._owners:
            items += [item for owner in self._turns for _, item in owner.waiting]
            self._owners.clear()
            self._turns.clear()
        self.items = self.weight = 0
        return items

    def next_group(self) -> list[T]:
        """Take what goes together next; nothing when nothing waits."""
        if not self._owners:
            return self.clear()
        group = self._round()
        if not group and self._turns:
            self._skip_rounds()
            group = self._round()
        return group

    def _round(self) -> list[T]:
        """Let each owner have its turn, beginning where the last group was full. One alone fills the group."""
        turn_weight, weight_max = self._bounds.turn_weight, self._bounds.commit_weight_max
        group: list[T] = []
        group_weight = 0
        for _ in range(len(self._turns)):
            owner = self._turns[0]
            turn = turn_weight if len(self._owners) > 1 else max(turn_weight, weight_max)
            owner.credit += turn
            while owner.waiting and (weight := owner.waiting[0][0]) <= owner.credit:
                if group and group_weight + weight > weight_max:
                    owner.credit -= turn  # it goes on with this turn in the next group
                    return group
                group.append(owner.waiting.popleft()[1])
                group_weight += weight
                owner.credit -= weight
                owner.weight -= weight
                self.items -= 1
                self.weight -= weight
            self._turns.popleft()
            if owner.waiting:
                self._turns.append(owner)
            else:
                del self._owners[owner.name]
        return group

    def _skip_rounds(self) -> None:
        """Let rounds pass in which nobody could take anything, until the next one."""
        turn_weight = self._bounds.turn_weight
        rounds = min((owner.waiting[0][0] - owner.credit - 1) // turn_weight for owner in self._turns)
        for owner in self._turns:
            owner.credit += rounds * turn_weight

"""What waits for a store, and who is next: in turns, so that nobody waits for all that somebody else brings. Pure.

`group_commit` keeps its submitters in it. Each item has an owner (a project, say) and a weight, roughly its bytes, and
owners have turns by weight (deficit round robin: Shreedhar and Varghese, 1995), whatever the number of their items:

- light items of all owners go together, of each as much as one turn lets it;
- a heavy item goes by itself, once as many turns of its owner have passed as make up for it;
- groups of either kind alternate while there are both: a light item waits for one heavy item at the most, besides the
  group under way, and light ones without end do not keep a heavy one waiting.

The room is shared, too. An owner may have as much waiting as it leaves free: one alone half of the room, two a third
each, so that there is always room for one more.
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
    """About 800 short rows: some 10 ms, and all in one commit wait for it. A heavier item has one of its own."""
    turn_weight: int = 64 * 1024
    """Of one turn. What is heavier than it is heavy."""


class _Entry(msgspec.Struct, Generic[T]):
    item: T
    weight: int


class _Owner(msgspec.Struct, Generic[T]):
    """What one owner has waiting; there is one while it has something."""

    name: str
    waiting: deque[_Entry[T]]
    weight: int = 0
    credit: int = 0
    """The weight that its turns let pass so far, less what did pass."""


class FairQueue(Generic[T]):
    """Items that wait, by owner."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._owners: dict[str, _Owner[T]] = {}
        """Those who have something waiting: each of them is in one of the next two."""
        self._turns: deque[_Owner[T]] = deque()
        """In the order of their turns."""
        self._ripe: deque[_Owner[T]] = deque()
        """Whose next item is heavy, and made up for."""
        self._was_heavy = False
        """Whether the last group was."""
        self.items = 0
        """So many wait."""
        self.weight = 0
        """Of all that wait."""

    def weight_of(self, owner: str) -> int:
        """Return the weight of what an owner has waiting."""
        return self._owners[owner].weight if owner in self._owners else 0

    def add(self, item: T, weight: int, owner: str) -> bool:
        """Take an item, if its owner leaves as much free with it as it has. An empty queue takes any."""
        mine = self._owners.get(owner)
        if self.items:
            items, held = (len(mine.waiting), mine.weight) if mine is not None else (0, 0)
            if items + 1 > self._bounds.queued_items_max - self.items - 1:
                return False
            if held + weight > self._bounds.queued_weight_max - self.weight - weight:
                return False
        if mine is None:
            mine = self._owners[owner] = _Owner(owner, deque())
            self._turns.append(mine)
        mine.waiting.append(_Entry(item, weight))
        mine.weight += weight
        self.items += 1
        self.weight += weight
        return True

    def clear(self) -> list[T]:
        """Take everything."""
        items = [entry.item for owner in self._owners.values() for entry in owner.waiting]
        self._owners.clear()
        self._turns.clear()
        self._ripe.clear()
        self.items = self.weight = 0
        return items

    def next_group(self) -> list[T]:
        """Take what goes together next; nothing when nothing waits."""
        group = [] if self._ripe and not self._was_heavy else self._light_group()
        if not group and self._turns and not self._ripe:
            self._skip_turns()
            self._light_group()  # is empty, and has made something ripe
        self._was_heavy = not group
        return group or self._heavy_group()

    def _light_group(self) -> list[T]:
        """Let each owner have its turn, beginning where the last group was full. One alone fills it."""
        turn_weight, weight_max = self._bounds.turn_weight, self._bounds.commit_weight_max
        group: list[T] = []
        group_weight = 0
        for _ in range(len(self._turns)):
            owner = self._turns[0]
            turn = turn_weight if len(self._owners) > 1 else max(turn_weight, weight_max)
            owner.credit += turn
            while owner.waiting and (weight := owner.waiting[0].weight) <= owner.credit:
                if weight > turn_weight:
                    self._ripe.append(owner)
                    break
                if group and group_weight + weight > weight_max:
                    owner.credit -= turn  # it goes on with this turn in the next group
                    return group
                group.append(self._take(owner))
                group_weight += weight
            else:
                if owner.waiting:
                    self._turns.append(owner)
            self._turns.popleft()
        return group

    def _skip_turns(self) -> None:
        """Let turns pass, as nobody has anything light, until the next one makes an item ripe."""
        turn_weight = self._bounds.turn_weight
        turns = min((owner.waiting[0].weight - owner.credit - 1) // turn_weight for owner in self._turns)
        for owner in self._turns:
            owner.credit += turns * turn_weight

    def _heavy_group(self) -> list[T]:
        """Take the ripe items that fit, one of each owner, and one in any case."""
        group: list[T] = []
        group_weight = 0
        while self._ripe:
            owner = self._ripe[0]
            group_weight += owner.waiting[0].weight
            if group and group_weight > self._bounds.commit_weight_max:
                break
            self._ripe.popleft()
            group.append(self._take(owner))
            if owner.waiting:
                self._turns.append(owner)
        return group

    def _take(self, owner: _Owner[T]) -> T:
        """Take an owner's next item, and forget an owner who has no more."""
        entry = owner.waiting.popleft()
        owner.credit -= entry.weight
        owner.weight -= entry.weight
        self.items -= 1
        self.weight -= entry.weight
        if not owner.waiting:
            del self._owners[owner.name]
        return entry.item

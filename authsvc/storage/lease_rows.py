"""What the database says about leases: `lease_store` reads it, and `revocation` decides by it. Pure."""

from dataclasses import dataclass
from datetime import datetime

CHANGES_BEHIND_MAX = 10_000
"""A holder that is further behind is reset: emptying its cache is cheaper than so many messages (rule 6)."""


INDEX_ID_PREFIX = "index-"
"""How the holder ids of the service's own key caches begin (`key_cache`); no caller may use them."""


@dataclass(frozen=True, slots=True)
class StoreState:
    """What one statement read of the database, after the leases it is for were committed."""

    epoch: str
    revision: int
    resumable_revision: int
    """Holders that have applied this much, or more, can be sent the rest; others are reset."""
    time: datetime
    """The database's clock."""


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A holder, as the table `leases` has it."""

    holder_id: str
    name: str
    epoch: str
    """Of acknowledged_revision."""
    acknowledged_revision: int
    expire_time: datetime
    """By the database's clock, margin included."""
    renew_time: datetime
    is_released: bool
    since_revision: int = 0
    """The current one when the holder came."""

    @property
    def is_index(self) -> bool:
        """Whether the holder is a replica's own key cache."""
        return self.holder_id.startswith(INDEX_ID_PREFIX)

    def has_confirmed(self, epoch: str) -> bool:
        """Whether the holder has applied, in the current epoch, a change that was made since it came.

        Whoever has only stolen the bridge token can invent holders by the thousand, but few that have: each takes as
        long as it takes for such a change to be made.
        """
        return self.is_index or (self.epoch == epoch and self.acknowledged_revision > self.since_revision)

    def is_behind(self, state: StoreState, revision: int) -> bool:
        """Whether the holder may still decide by what was before the revision."""
        if self.is_released or self.expire_time <= state.time:
            return False
        # What is ahead of the database has applied changes that were lost, and says nothing of those made since.
        return self.epoch != state.epoch or not revision <= self.acknowledged_revision <= state.revision

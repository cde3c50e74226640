"""What the database holds of projects, keys, changes and leases, as the stores return it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

import msgspec

from authsvc.client.api_key import Digest
from authsvc.keys import KeyId, ProjectId
from authsvc.origins import OriginList

Revision = NewType("Revision", int)
"""How many mutations were committed before and with this one: gap-free, and visible in order."""

CHANGES_BEHIND_MAX = 10_000
"""A holder that is further behind is reset: emptying its cache is cheaper than so many messages (rule 6)."""

KEY_CACHE_ID_PREFIX = "index-"
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
    def is_key_cache(self) -> bool:
        """Whether the holder is a replica's own key cache."""
        return self.holder_id.startswith(KEY_CACHE_ID_PREFIX)

    def has_confirmed(self, epoch: str) -> bool:
        """Whether the holder has applied, in this epoch, a change that was made since it came.

        With a stolen bridge token one can invent thousands of holders, but not make changes for them to confirm.
        """
        return self.is_key_cache or (self.epoch == epoch and self.acknowledged_revision > self.since_revision)

    def is_behind(self, state: StoreState, revision: int) -> bool:
        """Whether the holder may still decide by what was before the revision."""
        if self.is_released or self.expire_time <= state.time:
            return False
        # What is ahead of the database has applied changes that were lost, and says nothing of those made since.
        return self.epoch != state.epoch or not revision <= self.acknowledged_revision <= state.revision


class ChangeKind(StrEnum):
    """What a mutation did."""

    ISSUE = "issue"
    REVOKE = "revoke"
    SET_ORIGINS = "set_origins"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key."""

    key_id: KeyId
    project_id: ProjectId
    create_revision: Revision
    create_time: datetime
    revoke_time: datetime | None
    creator: str
    """Who issued it, as the caller said."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project with its key in use."""

    project_id: ProjectId
    origins: tuple[str, ...]
    create_time: datetime
    active_key: Key | None


class ActiveKey(msgspec.Struct):
    """Whose key a digest is, from which origins it may be used, and its response at a revision, once there is one."""

    key_id: KeyId
    project_id: ProjectId
    origins: OriginList
    response: Any = None
    response_revision: int = -1


class Snapshot(msgspec.Struct, frozen=True):
    """The active keys among those that were looked up, and the revision that all of them were read at."""

    epoch: str
    revision: Revision
    keys: dict[Digest, ActiveKey]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key about to be stored."""

    key_id: KeyId
    digest: Digest


@dataclass(frozen=True, slots=True)
class Mutated:
    """The outcome of a mutation."""

    revision: Revision
    """Its own; of the last one before it where all was so already, and nothing was committed (rule 11)."""
    key: Key | None = None
    """That was issued."""
    revoked_key: Key | None = None
    origins: tuple[str, ...] = ()
    """The project's, but not after a revocation."""
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the audit trail: one mutation, and the digests whose cached verdicts it invalidates."""

    revision: Revision
    kind: ChangeKind
    project_id: ProjectId
    invalidated_digests: tuple[Digest, ...]
    """ISSUE: the new key's. REVOKE: the revoked key's first, then the new key's. SET_ORIGINS: the active key's."""
    caller: str
    create_time: datetime

"""The shared database, with the semantics that the protocol leans on: PostgreSQL's, at READ COMMITTED.

Each method is one statement, or a transaction whose steps nothing can come between:
it sees what is committed when it runs. What takes several statements is several steps
of `replica`.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from authsvc.client.api_key import Digest
from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdicts import INVALID_KEY, Decision, Response, Verdict
from authsvc.storage.records import LeaseRow, StoreState
from authsvc.v1 import key_service_pb2 as pb
from tests.lease_events import change
from tests.simulation.schedule import Clock

_TTL_SECONDS = 1e9
"""So that nothing but the protocol ends a verdict."""
_SWEEP_ROWS = 20


@dataclass(frozen=True, slots=True)
class Project:
    """A project's one active key, and the origins it admits: empty for all."""

    project_id: str
    active: Digest
    origins: tuple[str, ...]


def answer_for(project: Project | None, digest: Digest, origin: str | None, epoch: str, revision: int) -> Response:
    """Return the verdict on a key, None being nobody's, as of a revision."""
    if project is None:
        return Response(INVALID_KEY, True, _TTL_SECONDS, revision, epoch)
    is_admitted = not project.origins or origin is None or origin in project.origins
    verdict = Verdict.ALLOWED if is_admitted else Verdict.ORIGIN_NOT_ALLOWED
    decision = Decision(verdict, project.project_id, digest.decode())
    return Response(decision, not project.origins, _TTL_SECONDS, revision, epoch)


@dataclass(frozen=True, slots=True)
class _Backup:
    revision: int
    version: int
    rows: dict[str, LeaseRow]
    projects: dict[str, Project]
    project_ids: dict[Digest, str]


class Database:
    """One counter, keys, changes and leases. `version` counts every commit, and never goes back as revisions may."""

    def __init__(self, clock: Clock, lease_seconds: float, margin_seconds: float, resumable_changes: int) -> None:
        self.clock = clock
        self.epoch = "epoch-1"
        self.revision = 0
        self.version = 0
        self.versions: dict[Digest, int] = {}
        """The version since which a key's state has been what it is."""
        self.changes: list[pb.WatchResponse] = []
        self.rows: dict[str, LeaseRow] = {}
        self.projects: dict[str, Project] = {}
        self.project_ids: dict[Digest, str] = {}
        """Of every key that was ever issued."""
        self.gone: set[str] = set()
        """The holders whose release was committed, for the checker."""
        self.lost_versions: set[int] = set()
        """What was committed and is no more."""
        self.lost: set[str] = set()
        """The rows that stand in for lost ones, for the checker."""
        self._lease_seconds = lease_seconds
        self._margin_seconds = margin_seconds
        self._resumable_changes = resumable_changes
        self._backup: _Backup | None = None

    def expiry(self, lease_seconds_max: float = float("inf")) -> datetime:
        """Return until when a lease that is granted now blocks revocations."""
        return self.clock.time_after(min(self._lease_seconds, lease_seconds_max) + self._margin_seconds)

    def renew(self, keep_alive: KeepAlive, expire_time: datetime) -> bool:
        """Insert or update a holder's lease; return whether it was not refused."""
        row = self.rows.get(keep_alive.holder_id)
        if row is not None and self.refuses(row):
            return False
        epoch, revision = keep_alive.epoch, keep_alive.applied_revision
        if row is not None:
            epoch, revision = self.acknowledged(row, keep_alive)
            expire_time = max(expire_time, row.expire_time)
        self.rows[keep_alive.holder_id] = LeaseRow(
            keep_alive.holder_id, keep_alive.name, epoch, revision, expire_time, expire_time, keep_alive.is_release
        )
        if keep_alive.is_release:
            self.gone.add(keep_alive.holder_id)
        if len(self.rows) > _SWEEP_ROWS:
            self._sweep()
        return True

    def refuses(self, row: LeaseRow) -> bool:
        """Rule 7: nobody comes back after a release."""
        return row.is_released

    def acknowledged(self, row: LeaseRow, keep_alive: KeepAlive) -> tuple[str, int]:
        """Rule 9: what a row acknowledges never goes down within an epoch, nor goes back to another."""
        if row.epoch == keep_alive.epoch:
            return row.epoch, max(row.acknowledged_revision, keep_alive.applied_revision)
        if row.epoch == self.epoch:
            return row.epoch, row.acknowledged_revision
        return keep_alive.epoch, keep_alive.applied_revision

    def _sweep(self) -> None:
        now = self.clock.time()
        for holder_id, row in list(self.rows.items()):
            if (now - row.expire_time).total_seconds() > 3 * (self._lease_seconds + self._margin_seconds):
                del self.rows[holder_id]

    def lease_rows(self) -> list[LeaseRow]:
        """Read all leases."""
        return list(self.rows.values())

    def state(self) -> StoreState:
        """Read the counter and the clock."""
        return StoreState(self.epoch, self.revision, max(0, self.revision - self._resumable_changes), self.clock.time())

    def lookup(self, digest: Digest) -> tuple[Project | None, str, int, int]:
        """Read a key and epoch and revision in one snapshot; the version beside them is for the checker."""
        project = self.projects.get(self.project_ids.get(digest, ""))
        found = None if project is None or project.active != digest else project
        return found, self.epoch, self.revision, self.version

    def issue(self, project_id: str, digest: Digest) -> tuple[Digest, ...]:
        """Make a project's first key."""
        self.projects[project_id] = Project(project_id, digest, ())
        self.project_ids[digest] = project_id
        return self._commit(digest)

    def revoke(self, project_id: str, digest: Digest, next_digest: Digest) -> tuple[Digest, ...]:
        """End a key and make the next one; return nothing when the key was revoked already (rule 11)."""
        project = self.projects.get(project_id)
        if project is None or project.active != digest:
            return ()
        self.projects[project_id] = replace(project, active=next_digest)
        self.project_ids[next_digest] = project_id
        return self._commit(digest, next_digest)

    def set_origins(self, project_id: str, origins: tuple[str, ...]) -> tuple[Digest, ...]:
        """Replace a project's origins; return nothing when there is no such project."""
        project = self.projects.get(project_id)
        if project is None:
            return ()
        self.projects[project_id] = replace(project, origins=origins)
        return self._commit(project.active)

    def _commit(self, *digests: Digest) -> tuple[Digest, ...]:
        self.revision += 1
        self.version += 1
        self.changes.append(change(self.revision, digests))
        for digest in digests:
            self.versions[digest] = self.version
        return digests

    def back_up(self) -> None:
        """Keep a copy of what there is."""
        self._backup = _Backup(
            self.revision, self.version, dict(self.rows), dict(self.projects), dict(self.project_ids)
        )

    def restore(self) -> int | None:
        """Lose what was committed since the copy and begin a new epoch; return the last version that is kept."""
        backup = self._backup
        if backup is None:
            return None
        self._backup = None
        self.version += 1
        self.lost_versions.update(range(backup.version + 1, self.version))
        for event in self.changes[backup.revision :]:
            for digest in map(Digest, event.change.key_digests):
                self.versions[digest] = self.version
        del self.changes[backup.revision :]
        self.revision, self.rows = backup.revision, dict(backup.rows)
        self.projects, self.project_ids = dict(backup.projects), dict(backup.project_ids)
        self.epoch = self.next_epoch()
        self.stand_in()
        return backup.version

    def stand_in(self) -> None:
        """Make revocations wait for the leases that were lost: a row stands in for their holders until they ended."""
        holder_id = f"lost-{self.version}"
        expire_time = self.expiry()
        self.rows[holder_id] = LeaseRow(holder_id, "lost", "", 0, expire_time, expire_time, is_released=False)
        self.lost.add(holder_id)

    def next_epoch(self) -> str:
        """Return an epoch that never was."""
        return f"epoch-{self.version + 1}"

"""The index of a replica: what `key_cache` does around the real `CachedKeys` and the real `Holder`, in virtual time.

It is a holder like a bridge's process, with a stream to its own replica, and answers
what bridges ask. It comes and goes, as load does.
"""

from typing import TYPE_CHECKING

from authsvc.client.api_key import Digest
from authsvc.client.holder import Holder
from authsvc.client.verdicts import Response
from authsvc.revocation.key_cache import LEASE_SECONDS_MAX, CachedKeys
from tests.simulation.bridge import Host, Process, Stream
from tests.simulation.database import Project, answer_for

if TYPE_CHECKING:
    from tests.simulation.replica import Replica


class IndexProcess(Process):
    """An index from when load begins to when it ends, or its replica does."""

    def __init__(self, host: Host, replica: "Replica") -> None:
        self._replica = replica
        self.known: CachedKeys[Project] = CachedKeys()
        self._versions: dict[Digest, int] = {}
        """Of the state that each digest was read by, for the checker."""
        super().__init__(host.world, host)

    def new_holder(self) -> Holder:
        return Holder(self.new_holder_id(), self.host.name, self.known, LEASE_SECONDS_MAX)

    def pick_replica(self) -> "Replica":
        return self._replica

    def stream_for_release(self) -> Stream | None:
        """Return the stream that is open: without one, its short lease soon ends by itself."""
        return self.stream

    def recall(self, digest: Digest, origin: str | None) -> tuple[Response, int] | None:
        """Response from memory under a live lease, with what was applied as the revision."""
        if not self.is_live():
            return None
        try:
            project = self.known.get(digest)
        except KeyError:
            return None
        return answer_for(project, digest, origin, self.holder.epoch, self.label()), self._versions[digest]

    def label(self) -> int:
        """Return the revision that answers from memory carry."""
        return self.holder.applied_revision

    def fill(self, digest: Digest, project: Project | None, epoch: str, revision: int, version: int) -> None:
        """Rule 4: keep what was read."""
        if self.may_fill(revision, epoch):
            self.known.put(digest, project)
            self._versions[digest] = version

    def may_fill(self, revision: int, epoch: str) -> bool:
        """Only what is as new as what was applied."""
        return self.holder.may_keep(revision, epoch)

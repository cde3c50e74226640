"""The promise, checked: what was promised by when, and which state each request was decided by. Nothing else judges.

The checker knows true time and every version of every key, which nobody in the
simulated world does.
"""

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from authsvc.client.api_key import Digest
from authsvc.client.verdicts import Verdict
from tests.simulation.schedule import Clock, Schedule, seconds_of

_PROMISES_KEPT = 8
"""Per key; older ones say nothing new of requests that are still under way."""
_DECISIONS_KEPT = 64
"""Per key, for promises that are made for an instant that has gone by."""


class Kind(StrEnum):
    """What was violated."""

    SAFETY = "safety"
    PROGRESS = "progress"


class ViolationError(Exception):
    """The protocol broke its promise."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody's request with a key, and when it started, in true time."""

    digest: Digest
    origin: str | None
    started_at: float
    excusable: bool = True
    """It may fail: the network is not healthy, or has not been for long enough."""


class Checker:
    """Keeps every promise and judges every decision."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        """`clock` is the database's."""
        self._schedule = schedule
        self._clock = clock
        self._promises: dict[Digest, list[tuple[float, int]]] = {}
        """By key: from this true time on, no decision by what was before this version."""
        self._coming: list[tuple[float, Digest, int]] = []
        """Promises for an instant of the database's clock that has not come."""
        self._decisions: dict[Digest, deque[tuple[float, int]]] = {}
        self._valid_from: dict[Digest, float] = {}
        self._looks_at = float("inf")
        self.decisions = 0
        self.promises = 0

    def __repr__(self) -> str:
        return "checker"

    def promise(self, versions: dict[Digest, int], effective_by: datetime) -> None:
        """Note that the service gave its word: from `effective_by` on, nothing is decided by older versions."""
        self.promises += 1
        reading = seconds_of(effective_by)
        true_time = self._clock.true_time(reading)
        for digest, version in versions.items():
            if true_time <= self._schedule.now:
                self._hold(digest, version, true_time)
            else:
                self._coming.append((reading, digest, version))
        self._look_out()

    def clock_moved(self) -> None:
        """Hold the promises whose instant has come: once it has, it has, though the clock may be put back."""
        if self._schedule.now >= self._looks_at:
            self._looks_at = float("inf")
        reading = self._clock()
        due = [promise for promise in self._coming if promise[0] < reading]
        self._coming = [promise for promise in self._coming if promise[0] >= reading]
        for _, digest, version in due:
            self._hold(digest, version, self._schedule.now)
        self._look_out()

    def _look_out(self) -> None:
        if self._coming:
            comes_at = max(self._clock.true_time(min(self._coming)[0]), self._schedule.now) + 1e-6
            if comes_at < self._looks_at or self._looks_at < self._schedule.now:
                self._looks_at = comes_at
                self._schedule.after(comes_at - self._schedule.now, self.clock_moved)

    def _hold(self, digest: Digest, version: int, since: float) -> None:
        promises = self._promises.setdefault(digest, [])
        promises.append((since, version))
        del promises[:-_PROMISES_KEPT]
        for started_at, decided_by in self._decisions.get(digest, ()):
            self._judge(digest, started_at, decided_by, since, version)

    def decided(self, request: Request, verdict: Verdict, version: int) -> None:
        """Judge a decision: `version` is that of the state it was decided by."""
        self.decisions += 1
        digest, started_at = request.digest, request.started_at
        for since, promised in self._promises.get(digest, ()):
            self._judge(digest, started_at, version, since, promised)
        decisions = self._decisions.get(digest)
        if decisions is None:
            decisions = self._decisions[digest] = deque(maxlen=_DECISIONS_KEPT)
        decisions.append((started_at, version))
        if verdict is Verdict.INVALID_KEY and started_at > self._valid_from.get(digest, float("inf")):
            raise ViolationError(Kind.SAFETY, f"{digest!r} is valid, and a request with it was refused as invalid")

    def _judge(self, digest: Digest, started_at: float, version: int, since: float, promised: int) -> None:
        if started_at > since and version < promised:
            raise ViolationError(
                Kind.SAFETY,
                f"a request with {digest!r} started at {started_at:.6f} and was decided by version {version}, "
                f"though version {promised} was promised from {since:.6f} on",
            )

    def undecided(self, request: Request) -> None:
        """Judge a request that got no verdict."""
        if not request.excusable:
            raise ViolationError(Kind.PROGRESS, f"a request with {request.digest!r} failed while all was well")

    def issued(self, digest: Digest) -> None:
        """Note that a key is valid from now on, and that everybody must have heard of it."""
        self._valid_from[digest] = self._schedule.now

    def revoked(self, digest: Digest) -> None:
        """Note that a key is not valid any more, whoever has heard of it."""
        self._valid_from.pop(digest, None)

    def restored(self, kept_version: int) -> None:
        """Note that the database lost what was committed after a version, and its leases with it.

        What it promised of that is void.
        """
        self._coming = [promise for promise in self._coming if promise[2] <= kept_version]
        for digest, promises in self._promises.items():
            self._promises[digest] = [promise for promise in promises if promise[1] <= kept_version]
        self._valid_from.clear()

    def stalled(self, text: str) -> None:
        """Judge that something did not come about although all was well."""
        raise ViolationError(Kind.PROGRESS, text)

"""The holder's side of the lease protocol, rule by rule. `tests/simulation` checks that the rules add up."""

import pytest

from authsvc.client.api_key import Digest
from authsvc.client.holder import KEEP_ALIVE_SECONDS_MAX, RESPONSE_SECONDS_MAX, Holder, StreamBrokenError
from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdict_cache import VerdictCache
from authsvc.client.verdicts import INVALID_KEY, Decision, Response, Verdict
from authsvc.v1 import key_service_pb2 as pb
from tests.authsvc.client.kept import kept
from tests.lease_events import change, lease, reset

_KEY, _OTHER = Digest(b"key"), Digest(b"other")
_VALID = Response(Decision(Verdict.ALLOWED, "project", "key_1"), True, 60.0, 0)
_INVALID = Response(INVALID_KEY, True, 60.0, 0)


class _Bridge:
    """A holder that was reset to revision 5 of epoch `e`, and asked for a lease at 100 s, which it has."""

    def __init__(self) -> None:
        self.cache = VerdictCache()
        self.holder = Holder("id", "name", self.cache)
        self.stream, self.first = self.holder.open(99.0)
        assert self.hear(reset("e", 5))
        self.keep_alive = self.holder.renew(100.0)
        assert not self.hear(lease(self.keep_alive.sequence, 60.0, 5))

    def hear(self, event: pb.WatchResponse) -> bool:
        return self.holder.receive(self.stream, event)

    def fill(self) -> None:
        self.cache.put(_KEY, None, _VALID, 100.0)
        self.cache.put(_OTHER, None, _INVALID, 100.0)


def test_it_has_no_lease_until_one_comes() -> None:
    """Its first keep-alive is waited for, and repeated, as later ones are."""
    holder = Holder("id", "name", VerdictCache(), lease_seconds_max=7.0)
    assert not holder.is_live(0.0)
    _, keep_alive = holder.open(99.0)
    assert keep_alive.lease_seconds_max == 7.0
    assert not holder.is_live(99.0)
    assert holder.give_up_at() == 99.0 + RESPONSE_SECONDS_MAX
    assert holder.renew_at() == 99.0 + KEEP_ALIVE_SECONDS_MAX


def test_it_begins_without_an_epoch_and_is_reset() -> None:
    """The first keep-alive acknowledges nothing; what follows the reset acknowledges it at once (rule 6)."""
    bridge = _Bridge()
    assert bridge.first == KeepAlive("", "id", "name", 1, 0)
    assert bridge.keep_alive == KeepAlive("e", "id", "name", 2, 5)


@pytest.mark.parametrize(("now", "is_live"), [(100.0, True), (159.9, True), (160.0, False), (1e9, False)])
def test_a_lease_counts_from_when_it_was_asked_for(now: float, is_live: bool) -> None:
    """Rule 2: it ends at the time read before the keep-alive was sent, plus the duration."""
    assert _Bridge().holder.is_live(now) is is_live


def test_a_lease_counts_once_the_holder_is_caught_up() -> None:
    """Rule 3: with the last change that the lease is for, not before."""
    bridge = _Bridge()
    sequence = bridge.holder.renew(150.0).sequence
    bridge.hear(lease(sequence, 60.0, 7))
    bridge.hear(change(6, ()))
    assert not bridge.holder.is_live(170.0)
    bridge.hear(change(7, ()))
    assert bridge.holder.is_live(170.0)


@pytest.mark.parametrize(
    ("revision", "epoch", "may_keep"),
    [(4, "e", False), (5, "e", True), (6, "e", True), (6, "", False), (6, "earlier", False)],
)
def test_an_answer_from_before_what_was_applied_is_not_kept(revision: int, epoch: str, may_keep: bool) -> None:
    """Rule 4: nor one that was asked for in another epoch, whatever its revision."""
    assert _Bridge().holder.may_keep(revision, epoch) is may_keep


def test_a_change_voids_what_it_names_and_is_acknowledged_at_once() -> None:
    """Rule 5: valid and invalid verdicts, and no others."""
    bridge = _Bridge()
    bridge.fill()
    assert bridge.hear(change(6, (_OTHER,)))
    assert bridge.cache.get(_OTHER, None, 101.0) is None
    assert bridge.cache.get(_KEY, None, 101.0) is not None
    assert bridge.holder.renew(101.0).applied_revision == 6


def test_a_gap_breaks_the_stream_and_an_old_change_is_ignored() -> None:
    """Rule 6: only the next change is applied."""
    bridge = _Bridge()
    bridge.fill()
    assert not bridge.hear(change(5, (_KEY,)))
    with pytest.raises(StreamBrokenError):
        bridge.hear(change(7, (_KEY,)))
    assert bridge.cache.get(_KEY, None, 101.0) is not None
    assert bridge.holder.applied_revision == 5


@pytest.mark.parametrize(
    ("event", "applied_revision", "is_live"),
    [
        (reset("e", 9), 9, True),
        (reset("e", 3), 5, True),
        (reset("f", 3), 3, False),
    ],
)
def test_a_reset_empties_the_cache(event: pb.WatchResponse, applied_revision: int, is_live: bool) -> None:
    """Rule 6: the applied revision never goes down within an epoch; another epoch invalidates the leases too."""
    bridge = _Bridge()
    bridge.fill()
    assert bridge.hear(event)
    assert kept(bridge.cache) == 0
    assert bridge.holder.applied_revision == applied_revision
    assert bridge.holder.is_live(101.0) is is_live
    assert bridge.holder.renew(101.0).epoch == event.reset.epoch


def test_the_lease_outlasts_its_stream() -> None:
    """Rule 6: while disconnected, the cache may be used to the lease's end."""
    bridge = _Bridge()
    bridge.fill()
    _, keep_alive = bridge.holder.open(120.0)
    assert keep_alive.applied_revision == 5
    assert bridge.holder.is_live(159.0)
    assert kept(bridge.cache) == 2


def test_what_abandoned_streams_bring_is_discarded() -> None:
    """Rule 8: neither their changes nor their leases count, and sequences go on."""
    bridge = _Bridge()
    late = bridge.holder.renew(110.0)
    _, keep_alive = bridge.holder.open(120.0)
    assert keep_alive.sequence > late.sequence
    assert not bridge.hear(change(6, ()))
    assert not bridge.hear(lease(late.sequence, 60.0, 5))
    assert bridge.holder.applied_revision == 5
    assert not bridge.holder.is_live(165.0)


def test_after_release_nothing_is_cached_or_granted() -> None:
    """Rule 7: the cache and all leases are given up before the release is sent, for good."""
    bridge = _Bridge()
    bridge.fill()
    asked = bridge.holder.renew(101.0)
    assert bridge.holder.release() == KeepAlive("e", "id", "name", asked.sequence + 1, 5, is_release=True)
    bridge.hear(lease(asked.sequence, 60.0, 5))
    assert kept(bridge.cache) == 0
    assert not bridge.holder.is_live(102.0)
    assert not bridge.holder.may_keep(9, "e")


@pytest.mark.parametrize(("lease_seconds", "renew_seconds"), [(60.0, KEEP_ALIVE_SECONDS_MAX), (6.0, 2.0)])
def test_several_keep_alives_fit_into_a_lease(lease_seconds: float, renew_seconds: float) -> None:
    """So that a lost one costs nothing, however short leases are."""
    bridge = _Bridge()
    keep_alive = bridge.holder.renew(110.0)
    bridge.hear(lease(keep_alive.sequence, lease_seconds, 5))
    assert bridge.holder.renew_at() == 110.0 + renew_seconds


@pytest.mark.parametrize(
    ("events", "is_kept"),
    [
        ([], False),
        ([lease(3, 60.0, 5)], True),
        ([lease(3, 60.0, 6)], False),
        ([lease(3, 60.0, 6), change(6, ())], True),
    ],
)
def test_a_stream_without_a_lease_that_counts_is_given_up(events: list[pb.WatchResponse], is_kept: bool) -> None:
    """Rule 6: five seconds after the oldest keep-alive that has no lease, or whose lease waits for changes."""
    bridge = _Bridge()
    assert bridge.holder.give_up_at() == float("inf")
    assert bridge.holder.renew(110.0).sequence == 3
    for event in events:
        bridge.hear(event)
    assert bridge.holder.give_up_at() == (float("inf") if is_kept else 110.0 + RESPONSE_SECONDS_MAX)

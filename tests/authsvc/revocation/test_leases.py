"""The service's side of the lease protocol, rule by rule. `tests/simulation` checks that the rules add up."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from authsvc.client.lease_messages import KeepAlive
from authsvc.revocation.leases import Propagation, WatchSession
from authsvc.storage.records import LeaseRow, StoreState
from authsvc.v1 import key_service_pb2 as pb
from tests.lease_events import change, lease, reset

_NOON = datetime(2000, 1, 1, 12, tzinfo=UTC)
_GRANT = lease(3, 60.0, 9)


def _at(seconds: float) -> datetime:
    return _NOON + timedelta(seconds=seconds)


def _state(seconds: float = 0.0, *, epoch: str = "e", revision: int = 9) -> StoreState:
    return StoreState(epoch, revision, resumable_revision=4, time=_at(seconds))


def _keep_alive(applied_revision: int, epoch: str = "e") -> KeepAlive:
    return KeepAlive(epoch, "a", "name", 3, applied_revision)


def _row(
    holder_id: str, acknowledged_revision: int, expires_in: float, *, epoch: str = "e", is_released: bool = False
) -> LeaseRow:
    return LeaseRow(holder_id, "name", epoch, acknowledged_revision, _at(expires_in), _at(-1.0), is_released)


@pytest.mark.parametrize(
    ("keep_alive", "answer", "position"),
    [
        (_keep_alive(9), [_GRANT], 9),
        (_keep_alive(4), [_GRANT], 4),
        (_keep_alive(3), [reset("e", 9), _GRANT], 9),
        (_keep_alive(10), [reset("e", 9), _GRANT], 9),
        (_keep_alive(0, epoch=""), [reset("e", 9), _GRANT], 9),
        (_keep_alive(9, epoch="d"), [reset("e", 9), _GRANT], 9),
    ],
    ids=["current", "resumes", "too far behind", "ahead", "new", "other epoch"],
)
def test_a_stream_resumes_or_is_reset(keep_alive: KeepAlive, answer: list[pb.WatchResponse], position: int) -> None:
    """Rule 6, and rule 1: the grant carries the revision that was read after the lease was committed."""
    session = WatchSession(60.0)
    assert session.renewed(keep_alive, _state()) == answer
    assert session.position == position


def test_a_holder_that_asks_for_a_shorter_lease_is_granted_that() -> None:
    """And nobody a longer one than the service gives."""
    for asked, granted in ((5.0, 5.0), (3600.0, 60.0)):
        keep_alive = replace(_keep_alive(9), lease_seconds_max=asked)
        assert WatchSession(60.0).renewed(keep_alive, _state()) == [lease(3, granted, 9)]


def test_later_keep_alives_are_granted_without_a_reset() -> None:
    """What a stream has been sent is known: a holder that has not applied it yet is not behind."""
    session = WatchSession(60.0)
    session.renewed(_keep_alive(9), _state())
    assert session.renewed(_keep_alive(9), _state(revision=30_000)) == [lease(3, 60.0, 30_000)]
    assert session.position == 9


def test_another_epoch_resets_a_stream_that_is_open() -> None:
    """The database was restored: everybody starts afresh."""
    session = WatchSession(60.0)
    session.renewed(_keep_alive(9), _state())
    assert session.renewed(_keep_alive(9), _state(epoch="f", revision=5))[0] == reset("f", 5)
    assert session.position == 5


def test_changes_are_sent_once_in_order_without_a_gap() -> None:
    """Whatever overlaps comes from the feed."""
    changes = [change(revision, ()) for revision in range(3, 9)]
    session = WatchSession(60.0)
    assert session.changed(changes) == []
    session.renewed(_keep_alive(5), _state(revision=5))
    assert session.changed(changes) == changes[3:]
    assert session.changed(changes) == []
    assert session.changed([change(10, ())]) == []


@pytest.mark.parametrize(
    ("row", "is_pending", "is_confirmed"),
    [
        (_row("a", 8, 30.0), True, False),
        (_row("a", 9, 30.0), False, True),
        (_row("a", 10, 30.0), False, True),
        (_row("a", 12, 30.0), True, False),
        (_row("a", 12, 30.0, epoch="d"), True, False),
        (_row("a", 8, 0.0), False, False),
        (_row("a", 9, -1.0), False, False),
        (_row("a", 8, 30.0, is_released=True), False, False),
    ],
    ids=["behind", "confirmed", "newer", "ahead of the database", "other epoch", "just expired", "expired", "gone"],
)
def test_a_change_waits_for_leases_that_are_behind(row: LeaseRow, is_pending: bool, is_confirmed: bool) -> None:
    """Until it is acknowledged in this epoch, or the lease is over."""
    propagation = Propagation(9, [row], _state(revision=10))
    assert list(propagation.pending) == ["a"] * is_pending
    assert list(propagation.confirmed) == ["a"] * is_confirmed
    assert propagation.is_effective is not is_pending
    assert propagation.effective_by == (row.expire_time if is_pending else _NOON)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (_row("a", 8, 30.0), True),
        (_row("a", 7, 30.0), False),
        (_row("a", 6, 30.0), False),
        (_row("a", 8, 30.0, epoch="d"), False),
        (_row("index-a", 0, 30.0, epoch=""), True),
    ],
    ids=["a change since it came", "what was there", "less", "in another epoch", "our own"],
)
def test_a_holder_has_confirmed_once_it_applied_a_change_made_since_it_came(row: LeaseRow, expected: bool) -> None:
    assert replace(row, since_revision=7).has_confirmed("e") is expected


def test_those_that_have_confirmed_before_are_named_first_and_of_them_the_last_to_expire() -> None:
    rows = [_row("invented", 8, 60.0), _row("early", 8, 20.0), _row("late", 8, 30.0), _row("old", 8, 70.0, epoch="d")]
    known = [replace(row, since_revision=3 if row.holder_id in ("early", "late") else 8) for row in rows]
    propagation = Propagation(9, known, _state())
    assert [row.holder_id for row in propagation.named(3)] == ["late", "early", "old"]


def test_it_is_effective_by_the_clock_read_after_the_last_check() -> None:
    """Rule 10: with nothing pending."""
    propagation = Propagation(9, [_row("a", 8, 30.0)], _state())
    renewed = _row("a", 9, 40.0)
    propagation.update([renewed], _state(2.0))
    assert propagation.is_effective
    assert propagation.effective_by == _at(2.0)
    assert propagation.confirmed == {"a": renewed}


def test_it_is_effective_by_the_latest_expiry_that_is_pending() -> None:
    """Rule 10: as of the commit; keep-alives by those who are behind do not extend it, and newcomers do not matter."""
    propagation = Propagation(9, [_row("a", 8, 30.0), _row("b", 8, 20.0)], _state())
    propagation.update([_row("a", 8, 60.0), _row("b", 8, 65.0), _row("c", 0, 65.0, epoch="")], _state(5.0))
    assert list(propagation.pending) == ["a", "b"]
    assert propagation.effective_by == _at(30.0)
    propagation.update([_row("a", 9, 60.0), _row("b", 8, 65.0)], _state(6.0))
    assert propagation.effective_by == _at(20.0)
    propagation.update([_row("a", 9, 60.0), _row("b", 8, 65.0)], _state(20.0))
    assert propagation.is_effective


@pytest.mark.parametrize("rows", [[], [_row("a", 8, 30.0, is_released=True)]], ids=["swept", "gone"])
def test_a_holder_that_left_is_not_waited_for(rows: list[LeaseRow]) -> None:
    """Rule 7: nor is it said to have confirmed."""
    propagation = Propagation(9, [_row("a", 8, 30.0)], _state())
    propagation.update(rows, _state(1.0))
    assert propagation.is_effective
    assert propagation.confirmed == {}


def test_a_lease_that_was_lost_is_waited_for() -> None:
    """A restored database does not know every lease: its holder may be using it."""
    propagation = Propagation(9, [_row("a", 8, 30.0)], _state())
    propagation.update([], _state(1.0, epoch="f"))
    assert propagation.effective_by == _at(30.0)
    propagation.update([], _state(30.0, epoch="f"))
    assert propagation.is_effective

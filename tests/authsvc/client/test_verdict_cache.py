"""How long and how widely verdicts are reused, and what may push out what."""

import sys
from hashlib import sha256

import pytest

from authsvc.client.api_key import Digest
from authsvc.client.verdict_cache import CacheLimits, VerdictCache
from authsvc.client.verdicts import INVALID_KEY, Decision, Response, Verdict
from tests.authsvc.client.kept import kept

PAGE = "https://example.com"
ALLOWED = Decision(Verdict.ALLOWED, "demo", "key_1")
REFUSED = Decision(Verdict.ORIGIN_NOT_ALLOWED, "demo", "key_1")


def digest(name: object) -> Digest:
    return Digest(sha256(str(name).encode()).digest())


KEY = digest("key")


def allowed(*, any_origin: bool = True, ttl_seconds: float = 60.0) -> Response:
    return Response(ALLOWED, any_origin, ttl_seconds, 1)


def refused(ttl_seconds: float = 60.0) -> Response:
    return Response(REFUSED, False, ttl_seconds, 1)


def invalid(ttl_seconds: float = 5.0) -> Response:
    return Response(INVALID_KEY, True, ttl_seconds, 1)


@pytest.mark.parametrize(
    ("answer", "ttl_seconds"),
    [
        (allowed(), 60.0),
        (allowed(any_origin=False), 60.0),
        (refused(), 60.0),
        (allowed(ttl_seconds=7.5), 7.5),
        (allowed(any_origin=False, ttl_seconds=7.5), 7.5),
        (refused(ttl_seconds=7.5), 7.5),
        (allowed(ttl_seconds=3600), 60.0),
        (invalid(), 5.0),
        (invalid(ttl_seconds=60), 10.0),
        (allowed(ttl_seconds=0.5), 0.5),
        (invalid(ttl_seconds=0.5), 0.5),
    ],
)
def test_a_verdict_lasts_from_when_the_call_was_sent(answer: Response, ttl_seconds: float) -> None:
    """For what the key service allows, and no longer than configured."""
    cache = VerdictCache()
    cache.put(KEY, PAGE, answer, sent_at=100.0)
    assert cache.get(KEY, PAGE, 100.0) == answer.decision
    assert cache.get(KEY, PAGE, 100.0 + ttl_seconds - 0.001) == answer.decision
    assert cache.get(KEY, PAGE, 100.0 + ttl_seconds) is None


def test_invalid_keys_last_no_longer_than_valid_ones() -> None:
    cache = VerdictCache(CacheLimits(ttl_seconds_max=2.0))
    cache.put(KEY, None, invalid(), sent_at=0.0)
    assert cache.get(KEY, None, 1.9) == INVALID_KEY
    assert cache.get(KEY, None, 2.0) is None


@pytest.mark.parametrize("answer", [allowed(ttl_seconds=0), refused(ttl_seconds=-1), invalid(ttl_seconds=0)])
def test_a_verdict_that_must_not_be_reused_is_not_kept(answer: Response) -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, allowed(), sent_at=0.0)
    cache.put(KEY, PAGE, answer, sent_at=0.0)
    assert cache.get(KEY, PAGE, 0.0) is None
    assert kept(cache) == 0


def test_a_verdict_for_any_origin_is_one_entry() -> None:
    cache = VerdictCache()
    for origin in (None, PAGE, "null", ""):
        cache.put(KEY, origin, allowed(), sent_at=0.0)
        assert cache.get(KEY, "https://never.asked", 1.0) == ALLOWED
    assert kept(cache) == 1


def test_a_verdict_for_an_origin_is_for_that_origin() -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, allowed(any_origin=False), sent_at=0.0)
    cache.put(KEY, "null", refused(), sent_at=0.0)
    assert cache.get(KEY, PAGE, 1.0) == ALLOWED
    assert cache.get(KEY, "null", 1.0) == REFUSED
    assert cache.get(KEY, None, 1.0) is None
    assert cache.get(KEY, "", 1.0) is None
    assert cache.get(digest("another"), PAGE, 1.0) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (allowed(), refused()),
        (allowed(), invalid()),
        (allowed(), allowed(any_origin=False)),
        (allowed(any_origin=False), refused()),
        (allowed(any_origin=False), invalid()),
        (refused(), allowed()),
        (refused(), allowed(any_origin=False)),
        (refused(), invalid()),
        (invalid(), allowed()),
        (invalid(), refused()),
        (allowed(), Response(Decision(Verdict.ALLOWED, "another", "key_2"), True, 60.0, 2)),
    ],
)
def test_a_newer_verdict_replaces_what_contradicts_it(before: Response, after: Response) -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, before, sent_at=0.0)
    cache.put(KEY, PAGE, after, sent_at=1.0)
    assert cache.get(KEY, PAGE, 1.0) == after.decision
    assert cache.get(KEY, "https://other.example", 1.0) == (after.decision if after.any_origin else None)
    assert kept(cache) == 1


@pytest.mark.parametrize(
    ("answer", "is_known", "is_known_elsewhere"),
    [
        (allowed(), True, True),
        (allowed(any_origin=False), True, False),
        (refused(), False, False),
        (invalid(), False, False),
    ],
)
def test_a_good_key_is_known_after_its_verdict_has_expired_until_it_is_dropped(
    answer: Response, is_known: bool, is_known_elsewhere: bool
) -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, answer, sent_at=0.0)
    assert cache.get(KEY, PAGE, 60.0) is None
    assert cache.knows(KEY, PAGE) is is_known
    assert cache.knows(KEY, "https://other.example") is is_known_elsewhere
    cache.drop(KEY)
    assert not cache.knows(KEY, PAGE)


def test_dropping_a_key_forgets_everything_about_it() -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, allowed(any_origin=False), sent_at=0.0)
    cache.put(KEY, "null", refused(), sent_at=0.0)
    cache.put(digest("probed"), None, invalid(), sent_at=0.0)
    for name in (KEY, digest("probed"), digest("unknown")):
        cache.drop(name)
    assert kept(cache) == 0
    assert cache.get(KEY, PAGE, 0.0) is None
    assert cache.get(digest("probed"), None, 0.0) is None


def test_the_least_recently_used_key_leaves_first() -> None:
    cache = VerdictCache(CacheLimits(keys_max=3))
    for name in "abc":
        cache.put(digest(name), None, allowed(), sent_at=0.0)
    cache.get(digest("a"), None, 1.0)
    cache.put(digest("d"), None, allowed(), sent_at=1.0)
    assert [name for name in "abcd" if cache.get(digest(name), None, 1.0)] == ["a", "c", "d"]


def test_probing_does_not_push_out_valid_keys() -> None:
    cache = VerdictCache(CacheLimits(keys_max=2, invalid_keys_max=3))
    cache.put(KEY, None, allowed(), sent_at=0.0)
    for number in range(1000):
        cache.put(digest(number), None, invalid(), sent_at=0.0)
    assert cache.get(KEY, None, 1.0) == ALLOWED
    assert kept(cache) == 1 + 3
    assert cache.get(digest(999), None, 1.0) == INVALID_KEY
    assert cache.get(digest(0), None, 1.0) is None


def test_hostile_origins_push_out_neither_other_keys_nor_admitted_origins() -> None:
    cache = VerdictCache(CacheLimits(keys_max=2, admitted_origins_max=4, refused_origins_max=4))
    cache.put(digest("other"), None, allowed(), sent_at=0.0)
    cache.put(KEY, None, allowed(any_origin=False), sent_at=0.0)
    cache.put(KEY, PAGE, allowed(any_origin=False), sent_at=0.0)
    for number in range(1000):
        cache.put(KEY, f"https://evil{number}.example", refused(), sent_at=0.0)
    assert cache.get(digest("other"), None, 1.0) == ALLOWED
    assert cache.get(KEY, None, 1.0) == ALLOWED
    assert cache.get(KEY, PAGE, 1.0) == ALLOWED
    assert kept(cache) == 1 + 2 + 4


def test_the_origins_of_a_key_are_bounded_and_the_least_recently_used_leaves_first() -> None:
    cache = VerdictCache(CacheLimits(admitted_origins_max=2))
    for origin in ("a", "b"):
        cache.put(KEY, origin, allowed(any_origin=False), sent_at=0.0)
    cache.get(KEY, "a", 1.0)
    cache.put(KEY, "c", allowed(any_origin=False), sent_at=1.0)
    assert [origin for origin in "abc" if cache.get(KEY, origin, 1.0)] == ["a", "c"]


def test_live_keys_are_those_that_would_be_admitted() -> None:
    cache = VerdictCache(CacheLimits(keys_max=2))
    assert not cache.has_live_keys(0.0)
    cache.put(digest("refused"), PAGE, refused(), sent_at=0.0)
    cache.put(digest("invalid"), PAGE, invalid(), sent_at=0.0)
    assert not cache.has_live_keys(0.0)
    cache.put(KEY, PAGE, allowed(any_origin=False, ttl_seconds=10), sent_at=0.0)
    assert cache.has_live_keys(9.0)
    assert not cache.has_live_keys(10.0)
    cache.put(KEY, PAGE, allowed(ttl_seconds=10), sent_at=10.0)
    assert cache.has_live_keys(19.0)
    assert not cache.has_live_keys(20.0)
    cache.drop(KEY)
    assert not cache.has_live_keys(19.0)


@pytest.mark.parametrize("any_origin", [True, False])
def test_a_key_that_was_dropped_keeps_no_other_alive(any_origin: bool) -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, allowed(any_origin=any_origin, ttl_seconds=10), sent_at=0.0)
    cache.put(digest("later"), PAGE, allowed(), sent_at=0.0)
    cache.drop(digest("later"))
    assert cache.has_live_keys(9.0)
    assert not cache.has_live_keys(10.0)


def test_a_key_whose_every_origin_is_refused_by_now_is_not_live() -> None:
    cache = VerdictCache()
    cache.put(KEY, PAGE, allowed(any_origin=False), sent_at=0.0)
    cache.put(KEY, PAGE, refused(), sent_at=0.0)
    assert not cache.has_live_keys(0.0)


def test_a_cached_verdict_takes_at_most_600_bytes() -> None:
    """Counted object by object, the cache's own tables included; strings are a project's and a key's as they come."""
    count = 5000
    cache = VerdictCache()
    for number in range(count):
        decision = Decision(Verdict.ALLOWED, f"project-{number:04}", f"key_{number:016x}")
        cache.put(digest(number), None, Response(decision, True, 60.0, 1), sent_at=float(number))
    assert reachable_bytes(cache) / count <= 600


def reachable_bytes(root: object) -> int:
    """Return the size of everything reachable from `root` but classes and enums."""
    seen: dict[int, object] = {}
    todo = [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (type, Verdict)):
            continue
        seen[id(one)] = one
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        todo += getattr(one, "__dict__", {}).values()
        for kind in type(one).__mro__:
            todo += [getattr(one, slot) for slot in getattr(kind, "__slots__", ())]
    return sum(map(sys.getsizeof, seen.values()))

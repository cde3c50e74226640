"""Verdicts that may be reused for a while, by key digest and origin; never the API key. Pure.

Three bounds keep hostile callers from pushing out what others need:

- Keys that are valid have a cache of their own; the least recently used key leaves first. Invalid keys have another,
  smaller and shorter-lived, so probing cannot push out good keys.
- Each valid key holds a bounded number of origins: many `Origin` headers sent with one key push out no other key.
- Within a key, refused origins are bounded apart from admitted ones.

A verdict that holds for every origin is one entry.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from authsvc.client.api_key import Digest
from authsvc.client.verdicts import INVALID_KEY, ORIGIN_CHARACTERS_MAX, Decision, Response, Verdict

_NEVER = float("-inf")

_Expiries: TypeAlias = dict[str | None, float]
"""When the verdict on each origin expires, in order of use; small, so no OrderedDict."""


class _Key:
    """What is known of one valid key."""

    __slots__ = ("admitted", "allowed", "any_expires_at", "refusal", "refused")

    def __init__(self, project_id: str, key_id: str) -> None:
        self.allowed = Decision(Verdict.ALLOWED, project_id, key_id)
        self.refusal: Decision | None = None
        self.any_expires_at = _NEVER
        """Until when every origin is admitted."""
        self.admitted: _Expiries | None = None
        self.refused: _Expiries | None = None


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much is kept, by default about 25 MB without origins, and for how long at most."""

    keys_max: int = 50_000
    admitted_origins_max: int = 16
    refused_origins_max: int = 8
    invalid_keys_max: int = 10_000
    ttl_seconds_max: float = 60.0
    invalid_ttl_seconds_max: float = 10.0


class VerdictCache:
    """Bounded in all: `keys_max` × (1 + admitted + refused origins) + `invalid_keys_max` verdicts at the most."""

    def __init__(self, limits: CacheLimits = CacheLimits()) -> None:
        self._limits = limits
        self._keys: OrderedDict[Digest, _Key] = OrderedDict()
        self._invalid: OrderedDict[Digest, float] = OrderedDict()
        self._latest_expiry = _NEVER

    def get(self, digest: Digest, origin: str | None, now: float) -> Decision | None:
        """Return the decision that holds at `now`, in seconds of the monotonic clock, or None."""
        key = self._keys.get(digest)
        if key is None:
            if self._invalid.get(digest, _NEVER) > now:
                self._invalid.move_to_end(digest)
                return INVALID_KEY
            return None
        if key.any_expires_at > now or (key.admitted is not None and _is_live(key.admitted, origin, now)):
            self._keys.move_to_end(digest)
            return key.allowed
        if key.refused is not None and _is_live(key.refused, origin, now):
            self._keys.move_to_end(digest)
            return key.refusal
        return None

    def knows(self, digest: Digest, origin: str | None) -> bool:
        """Whether the key was admitted from the origin lately: what has expired counts until it is pushed out."""
        key = self._keys.get(digest)
        return key is not None and (key.any_expires_at != _NEVER or origin in (key.admitted or ()))

    def put(self, digest: Digest, origin: str | None, response: Response, sent_at: float) -> None:
        """Keep the response to a call that was sent at `sent_at`; it replaces what contradicts it."""
        decision = response.decision
        is_invalid = decision.verdict is Verdict.INVALID_KEY
        limits = self._limits
        ttl_seconds = min(response.cache_ttl_seconds, limits.ttl_seconds_max)
        if is_invalid:
            ttl_seconds = min(ttl_seconds, limits.invalid_ttl_seconds_max)
        expires_at = sent_at + ttl_seconds
        if is_invalid or ttl_seconds <= 0:
            self.drop(digest)
            if ttl_seconds > 0:
                self._invalid[digest] = expires_at
                if len(self._invalid) > limits.invalid_keys_max:
                    self._invalid.popitem(last=False)
            return
        self._invalid.pop(digest, None)
        key = self._key(digest, decision)
        key.any_expires_at = _NEVER
        if decision.verdict is Verdict.ORIGIN_NOT_ALLOWED:
            key.refusal = decision
            key.refused = _put(key.refused, origin, expires_at, limits.refused_origins_max)
            (key.admitted or {}).pop(origin, None)
            return
        self._latest_expiry = max(self._latest_expiry, expires_at)
        if response.any_origin:
            key.any_expires_at = expires_at
            key.admitted = key.refused = key.refusal = None
            return
        key.admitted = _put(key.admitted, origin, expires_at, limits.admitted_origins_max)
        (key.refused or {}).pop(origin, None)

    def _key(self, digest: Digest, decision: Decision) -> _Key:
        """Return the key's place, a new one when there is none or it was another's."""
        key = self._keys.get(digest)
        if key is None or (key.allowed.project_id, key.allowed.key_id) != (decision.project_id, decision.key_id):
            key = self._keys[digest] = _Key(decision.project_id, decision.key_id)
            if len(self._keys) > self._limits.keys_max:
                self._keys.popitem(last=False)
        self._keys.move_to_end(digest)
        return key

    def drop(self, digest: Digest) -> None:
        """Forget everything about a key, valid or invalid."""
        self._keys.pop(digest, None)
        self._invalid.pop(digest, None)

    def clear(self) -> None:
        """Forget everything."""
        self._keys.clear()
        self._invalid.clear()
        self._latest_expiry = _NEVER

    def has_live_keys(self, now: float) -> bool:
        """Whether requests with some key would be admitted without the key service."""
        if self._latest_expiry <= now:
            return False
        return any(
            key.any_expires_at > now or any(expires_at > now for expires_at in (key.admitted or {}).values())
            for key in reversed(self._keys.values())
        )


def _is_live(expiries: _Expiries, origin: str | None, now: float) -> bool:
    if expiries.get(origin, _NEVER) <= now:
        return False
    expiries[origin] = expiries.pop(origin)
    return True


def _put(expiries: _Expiries | None, origin: str | None, expires_at: float, origins_max: int) -> _Expiries:
    """Keep an expiry; the least recently used one makes room for it."""
    kept = expiries or {}
    kept.pop(origin, None)
    if len(kept) >= origins_max:
        del kept[next(iter(kept))]
    kept[origin] = expires_at
    return kept


def sendable_origin(origin: str | None) -> str | None:
    """Return an origin that protobuf can carry, to be validated and cached in place of the given one.

    What is too long or not valid Unicode is replaced by the empty origin: no entry admits either, so the verdict is
    the same.
    """
    if origin is None or (len(origin) <= ORIGIN_CHARACTERS_MAX and origin.isascii()):
        return origin
    try:
        origin.encode()
    except UnicodeEncodeError:
        return ""
    return origin if len(origin) <= ORIGIN_CHARACTERS_MAX else ""

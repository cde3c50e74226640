"""POST /ingest/logs: the checks in the contract's order, the rate limit among them, then the store."""

import asyncio
import math
import re
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256

import msgspec
from aiohttp import hdrs
from multidict import MultiMapping, istr

from authsvc.client import Verdict
from authsvc.client.api_key import ApiKey
from authsvc.client.validator import KeyValidator
from authsvc.runtime.networks import Networks
from httpbridge.errors import BodyRefusedError, RateLimitedError
from httpbridge.http import bodies, responses
from httpbridge.http.fairness import BodyTurn, Turns
from httpbridge.http.request import Request
from httpbridge.http.responses import Response
from httpbridge.ingest import log_parser
from httpbridge.log_store import LogSink
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.logs import LOGS_MAX, LogBatch

_OPAQUE_ORIGIN = "null"
_IDEMPOTENCY_KEY = istr("Idempotency-Key")
_IDEMPOTENCY_KEY_FORM = re.compile(r"[ -~]{1,255}")
_DIGEST_BYTES_MAX = 64 * 1024
"""Of a body whose digest is made without going to a thread: a tenth of a millisecond."""

WINDOW_SECONDS = 60


class Quota(msgspec.Struct, frozen=True, gc=False):
    """Where a key stands in the current window."""

    admitted: bool
    remaining: int
    """Requests left in the window; none once its bytes are used up."""
    reset_unix_seconds: int
    """When the window ends."""
    retry_after_seconds: int
    """From now to the window's end, rounded up; at least 1."""


class RateLimit:
    """How many requests, and bytes, a key may send in a minute. Holds two numbers for each key that was used in it.

    A fixed window aligned to the wall-clock minute, counted in this process: with several bridges each admits the full
    numbers. Bytes are those of decoded bodies, counted as they come out, also of bodies that are refused afterwards.
    The body that uses up the last of them is taken whole; the next one is refused before it is read, or, where it was
    on its way by then, before it is decoded. So each key has one body a minute, whatever the limit.
    """

    def __init__(self, limit_per_minute: int, bytes_per_minute: int, now: Callable[[], datetime]) -> None:
        self._limit_per_minute = limit_per_minute
        self._bytes_per_minute = bytes_per_minute
        self._now = now
        self._window = 0
        self._counts: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def take(self, key_id: str) -> Quota:
        """Count one request, if the key has any left, and say whether it is admitted."""
        return self._quota(key_id, 1)

    def peek(self, key_id: str) -> Quota:
        """Say where the key stands, without counting; `admitted` is whether a request would be."""
        return self._quota(key_id, 0)

    def begin_body(self, key_id: str, count: int) -> None:
        """Count a decoded body, or the first bytes of it; raise RateLimitedError when the key has none left.

        In the window of the last `take` or `peek`: a body that was not waited for need not look at the clock again.
        """
        taken = self._bytes.get(key_id, 0)
        if taken >= self._bytes_per_minute:
            raise RateLimitedError
        self._bytes[key_id] = taken + count

    def body(self, key_id: str) -> Callable[[int], None]:
        """Return what counts a body that is waited for, piece by piece; only the first can raise RateLimitedError."""
        is_first = True

        def count(count: int) -> None:
            nonlocal is_first
            self._roll()
            if is_first:
                self.begin_body(key_id, count)
                is_first = False
            else:
                self._bytes[key_id] = self._bytes.get(key_id, 0) + count

        return count

    def headers(self, quota: Quota) -> bytes:
        """Return the header lines that tell a caller with a valid key where it stands in this minute."""
        lines = b"X-RateLimit-Limit: %d\r\nX-RateLimit-Remaining: %d\r\nX-RateLimit-Reset: %d\r\n"
        return lines % (self._limit_per_minute, quota.remaining, quota.reset_unix_seconds)

    def _roll(self) -> float:
        """Begin a new window where it is time; return the time, in Unix seconds."""
        unix_seconds = self._now().timestamp()
        window = int(unix_seconds // WINDOW_SECONDS)
        if window != self._window:  # also when the clock was set back: a window in the future would never end
            self._window = window
            self._counts = {}
            self._bytes = {}
        return unix_seconds

    def _quota(self, key_id: str, requests: int) -> Quota:
        unix_seconds = self._roll()
        limit = self._limit_per_minute if self._bytes.get(key_id, 0) < self._bytes_per_minute else 0
        used = self._counts.get(key_id, 0)
        admitted = used < limit
        if admitted and requests:
            used += requests
            self._counts[key_id] = used
        reset = (self._window + 1) * WINDOW_SECONDS
        return Quota(admitted, max(0, limit - used), reset, max(1, math.ceil(reset - unix_seconds)))


class Ingest:
    """Takes batches of logs in. Made inside the event loop.

    `body_bytes_max` bounds a body as it comes and as it inflates. `count_origin` is told the project and the origin of
    each request that has an origin and a valid key, and whether it is allowed.
    """

    def __init__(
        self,
        *,
        validator: KeyValidator,
        count_origin: Callable[[str, str, bool], None],
        rate_limit: RateLimit,
        sink: LogSink,
        now: Callable[[], datetime],
        body_bytes_max: int,
        body_budget: bodies.Budget,
    ) -> None:
        self._validator = validator
        self._count_origin = count_origin
        self._rate_limit = rate_limit
        self._sink = sink
        self._now = now
        self._body_bytes_max = body_bytes_max
        self._body_budget = body_budget
        self.turns = Turns(asyncio.get_running_loop(), Networks(), turns=1, caller_turns=1)
        """Of large bodies, by project."""
        self._stored = [responses.stored(count) for count in range(LOGS_MAX + 1)]

    async def handle(self, request: Request) -> Response:
        """Respond once the batch is durably stored, or refused.

        Raises BridgeError and KeyServiceUnavailableError, which `request` turns into responses.
        """
        received_at = self._now()
        api_key = _api_key(request.headers)
        if api_key is None:
            return responses.INVALID_KEY
        origin = _origin(request.headers)
        decision = self._validator.cached(api_key, origin)
        if decision is None:  # one that refuses is false
            decision = await self._validator.validate(api_key, origin)
        if decision.verdict is Verdict.INVALID_KEY:
            return responses.INVALID_KEY
        request.project_id = project_id = decision.project_id
        is_origin_allowed = decision.verdict is Verdict.ALLOWED
        if origin is not None:
            self._count_origin(project_id, origin, is_origin_allowed)
        key_id = decision.key_id
        quota = (self._rate_limit.take if is_origin_allowed else self._rate_limit.peek)(key_id)
        request.more_headers = self._rate_limit.headers(quota)
        if not is_origin_allowed:
            return responses.ORIGIN_NOT_ALLOWED
        if not quota.admitted:
            return responses.rate_limited(quota.retry_after_seconds)
        try:
            body = request.take_body(self._body_bytes_max)
            batch = None
            if body is not None:
                self._rate_limit.begin_body(key_id, len(body))
                batch = log_parser.parse_small(body, project_id, key_id, received_at)
            if body is None or batch is None:
                body, batch = await self._read_in_turns(request, body, project_id, key_id, received_at)
        except RateLimitedError:
            quota = self._rate_limit.peek(key_id)
            request.more_headers = self._rate_limit.headers(quota)
            return responses.rate_limited(quota.retry_after_seconds)
        idempotency = await _idempotency(request.headers, body) if _IDEMPOTENCY_KEY in request.headers else None
        del body  # the store may be slow, and has its own bound for what waits
        await self._sink.write(batch, idempotency)
        return self._stored[len(batch.entries)]

    async def _read_in_turns(
        self, request: Request, body: bytes | None, project_id: str, key_id: str, received_at: datetime
    ) -> tuple[bytes, LogBatch]:
        """Return a body that has not come as it is, or is not small and in order, and its batch."""
        turn = BodyTurn(self.turns, project_id)
        # The reservation is kept while the body waits for its turns.
        with bodies.Reservation(self._body_budget, key_id, self._rate_limit.body(key_id)) as reservation:
            if body is None:
                body = await bodies.read(request, self._body_bytes_max, reservation, turn.take)
                batch = log_parser.parse_small(body, project_id, key_id, received_at)
                if batch is not None:
                    return body, batch
            return body, await turn.run(log_parser.parse(body, project_id, key_id, received_at))


async def _idempotency(headers: MultiMapping[str], body: bytes) -> IdempotencyKey:
    """Return the header's key with the body's digest. Raises BodyRefusedError for what is no key, or several."""
    keys = headers.getall(_IDEMPOTENCY_KEY)
    if len(keys) != 1 or not _IDEMPOTENCY_KEY_FORM.fullmatch(keys[0]):
        raise BodyRefusedError("must be one key of 1 to 255 printable ASCII characters", "Idempotency-Key")
    digest = sha256(body) if len(body) <= _DIGEST_BYTES_MAX else await asyncio.to_thread(sha256, body)
    return IdempotencyKey(keys[0], digest.digest())


def _api_key(headers: MultiMapping[str]) -> ApiKey | None:
    """Return the key of `Bearer` and one well-formed key; of anything else None: the key service is not asked."""
    values = headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) != 1:  # of several, another reader of the same request might take another one
        return None
    scheme, _, credentials = values[0].partition(" ")
    if scheme.lower() != "bearer":  # RFC 9110, 11.1: the scheme's case does not matter
        return None
    return ApiKey.parse(credentials.lstrip(" "))


def _origin(headers: MultiMapping[str]) -> str | None:
    """Return the request's origin, or None when it has none; several count as `null`, which no entry admits.

    What else no entry can admit, such as bytes that are not UTF-8, the validator puts under one verdict.
    """
    values = headers.getall(hdrs.ORIGIN, ())
    if not values:
        return None
    return values[0] if len(values) == 1 else _OPAQUE_ORIGIN

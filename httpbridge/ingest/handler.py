"""POST /ingest/logs: the checks in the contract's order, then the store. Called by `server` for each such request."""

import asyncio
import re
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256

from aiohttp import hdrs
from multidict import MultiMapping, istr

from authsvc.client import Decision, Verdict
from authsvc.client.api_key import ApiKey
from authsvc.client.validator import KeyValidator
from authsvc.runtime.networks import Networks
from httpbridge.errors import BodyRefusedError, BodyTooLargeError, RateLimitedError
from httpbridge.http import bodies, responses
from httpbridge.http.fairness import Turns
from httpbridge.http.request import Request
from httpbridge.http.responses import Response
from httpbridge.ingest import log_parser
from httpbridge.ingest.body_turns import BodyTurn
from httpbridge.ingest.rate_limit import Quota, RateLimit
from httpbridge.log_store import LogSink
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.logs import LOGS_MAX, LogBatch

_OPAQUE_ORIGIN = "null"
_IDEMPOTENCY_KEY = istr("Idempotency-Key")
_IDEMPOTENCY_KEY_FORM = re.compile(r"[ -~]{1,255}")
_DIGEST_BYTES_MAX = 64 * 1024
"""Of a body whose digest is made without going to a thread: a tenth of a millisecond."""


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

        Raises BridgeError and KeyServiceUnavailableError, which `server` turns into responses.
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
        request.project_id = decision.project_id
        is_origin_allowed = decision.verdict is Verdict.ALLOWED
        if origin is not None:
            self._count_origin(decision.project_id, origin, is_origin_allowed)
        key_id = decision.key_id
        quota = (self._rate_limit.take if is_origin_allowed else self._rate_limit.peek)(key_id)
        request.more_headers = self._rate_headers(quota)
        if not is_origin_allowed:
            return responses.ORIGIN_NOT_ALLOWED
        if not quota.admitted:
            return responses.rate_limited(quota.retry_after_seconds)
        try:
            body = request.take_body()
            if body is not None:
                if len(body) > self._body_bytes_max:
                    raise BodyTooLargeError
                self._rate_limit.begin_body(key_id, len(body))
                batch = await self._parse(body, decision, received_at, None)
            else:
                turn = BodyTurn(self.turns, decision.project_id)
                # The reservation is kept while the body waits for its turns.
                with bodies.Reservation(self._body_budget, key_id, self._rate_limit.body(key_id)) as reservation:
                    body = await bodies.read(request, self._body_bytes_max, reservation, turn.take)
                    batch = await self._parse(body, decision, received_at, turn)
        except RateLimitedError:
            quota = self._rate_limit.peek(key_id)
            request.more_headers = self._rate_headers(quota)
            return responses.rate_limited(quota.retry_after_seconds)
        idempotency = await _idempotency(request.headers, body) if _IDEMPOTENCY_KEY in request.headers else None
        del body  # the store may be slow, and has its own bound for what waits
        await self._sink.write(batch, idempotency)
        return self._stored[len(batch.entries)]

    async def _parse(self, body: bytes, decision: Decision, received_at: datetime, turn: BodyTurn | None) -> LogBatch:
        """Return the batch: of a small body at once, of any other in turns."""
        project_id, key_id = decision.project_id, decision.key_id
        batch = log_parser.parse_small(body, project_id, key_id, received_at)
        if batch is not None:
            return batch
        turn = turn or BodyTurn(self.turns, project_id)
        return await turn.run(log_parser.parse(body, project_id, key_id, received_at))

    def _rate_headers(self, quota: Quota) -> bytes:
        return responses.rate_headers(self._rate_limit.limit_per_minute, quota.remaining, quota.reset_unix_seconds)


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

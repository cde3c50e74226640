"""POST /ingest/logs: the checks in the contract's order, then the store. Called by `server` for each such request."""

from collections.abc import Callable
from datetime import datetime

from authsvc.client import Verdict
from httpbridge.errors import RateLimitedError
from httpbridge.http import bodies, responses
from httpbridge.http.request import Request
from httpbridge.http.responses import Response
from httpbridge.ingest import log_parser
from httpbridge.ingest.authorizer import Authorizer
from httpbridge.ingest.body_turns import BodyTurn, BodyTurns
from httpbridge.ingest.rate_limit import Quota, RateLimit
from httpbridge.log_store import LogSink
from httpbridge.logs import LOGS_MAX


class Ingest:
    """Takes batches of logs in. `body_bytes_max` bounds a body as it comes and as it inflates."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        rate_limit: RateLimit,
        sink: LogSink,
        now: Callable[[], datetime],
        body_bytes_max: int,
        body_budget: bodies.Budget,
        turns: BodyTurns,
    ) -> None:
        self._authorizer = authorizer
        self._rate_limit = rate_limit
        self._sink = sink
        self._now = now
        self._body_bytes_max = body_bytes_max
        self._body_budget = body_budget
        self._turns = turns
        self._stored = [responses.stored(count) for count in range(LOGS_MAX + 1)]

    async def handle(self, request: Request) -> Response:
        """Answer once the batch is durably stored, or refused.

        Raises BridgeError and KeyServiceUnavailableError, which `server` turns into answers.
        """
        received_at = self._now()
        decision = await self._authorizer.authorize(request.headers)
        if decision.verdict is Verdict.INVALID_KEY:
            return responses.INVALID_KEY
        request.project_id = decision.project_id
        is_origin_allowed = decision.verdict is Verdict.ALLOWED
        quota = (self._rate_limit.take if is_origin_allowed else self._rate_limit.peek)(decision.key_id)
        request.more_headers = self._rate_headers(quota)
        if not is_origin_allowed:
            return responses.ORIGIN_NOT_ALLOWED
        if not quota.admitted:
            return responses.rate_limited(quota.retry_after_seconds)

        encoding = bodies.encoding(request.headers)
        bodies.refuse_declared_length(request.headers, self._body_bytes_max)
        project_id, key_id = decision.project_id, decision.key_id
        try:
            if request.has_whole_body() and encoding is bodies.Encoding.IDENTITY:
                body = request.take_body(self._body_bytes_max)
                self._rate_limit.begin_body(key_id, len(body))
                batch = log_parser.parse_small(body, project_id, key_id, received_at)
                if batch is None:
                    steps = log_parser.parse(body, project_id, key_id, received_at)
                    batch = await self._turns.of(project_id).run(steps)
            else:
                turn = self._turns.of(project_id)
                # The share is kept while the body waits for its turns. What came along with its headers has none: the
                # connection bounds it.
                count_body = self._rate_limit.body(key_id)
                with self._body_budget.share(key_id, count_body) as share:
                    body = await self._read_body(request, encoding, share, turn)
                    if encoding is bodies.Encoding.IDENTITY:
                        count_body(len(body))
                    batch = log_parser.parse_small(body, project_id, key_id, received_at)
                    if batch is None:
                        batch = await turn.run(log_parser.parse(body, project_id, key_id, received_at))
        except RateLimitedError:
            quota = self._rate_limit.peek(key_id)
            request.more_headers = self._rate_headers(quota)
            return responses.rate_limited(quota.retry_after_seconds)
        del body  # the store may be slow, and has its own bound for what waits
        await self._sink.write(batch)
        return self._stored[len(batch.entries)]

    def _rate_headers(self, quota: Quota) -> bytes:
        return responses.rate_headers(self._rate_limit.limit_per_minute, quota.remaining, quota.reset_unix_seconds)

    async def _read_body(
        self, request: Request, encoding: bodies.Encoding, share: bodies.Reservation, turn: BodyTurn
    ) -> bytes:
        if request.has_whole_body():
            raw = request.take_body(self._body_bytes_max)
        else:
            raw = await request.read_body(self._body_bytes_max, share)
        return await bodies.decode(raw, encoding, self._body_bytes_max, share, turn.take)

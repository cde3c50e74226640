"""Batches of lookups at the key service: protobuf and status codes in, typed responses and errors out."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import ClientTls, Metadata, TokenSource, call_with_token, connection_fault, open_channel
from authsvc.client.verdicts import INVALID_KEY, Decision, KeyServiceUnavailableError, Response, Verdict
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.v1 import key_service_pb2 as pb2
from authsvc.v1.key_service_pb2_grpc import KeyServiceStub

KEYS_PER_CALL_MAX = 256
"""As many as the key service takes in one call."""
CALL_SECONDS_MAX = 2.0
"""For the response, connecting included."""

_VERDICTS = {
    pb2.VERDICT_ALLOWED: Verdict.ALLOWED,
    pb2.VERDICT_INVALID_KEY: Verdict.INVALID_KEY,
    pb2.VERDICT_ORIGIN_NOT_ALLOWED: Verdict.ORIGIN_NOT_ALLOWED,
}
_CHANNELS = 4
"""The key service may be several processes that share a port, and a channel reaches one of them."""
_REST_SECONDS = 1.0
"""For a channel whose call failed, while others do not fail: as long as gRPC may take to connect again."""
_NO_STREAM_SECONDS = 60.0
"""For a channel whose stream was never answered: the key service is an older one, or has too many."""
_FIRST_RESPONSE_SECONDS = 0.5
"""For a new stream, to leave time for a call: something in between may keep what is streamed to itself."""
# A channel that has failed for so long is replaced: gRPC retries an unknown host name with a back-off of up to two
# minutes that has no setting, and renewed certificate files are read by a new channel only.
_REOPEN_AFTER_SECONDS = 5.0


class _BatchStream:
    """StreamValidate: one batch at a time on a stream that stays open, for a quarter of a call's cost."""

    def __init__(self, stub: KeyServiceStub, metadata: Metadata) -> None:
        """Open it; whether the service lets us shows at the first batch."""
        open_stream: Any = stub.StreamValidate  # the stub does not know that requests may be written, too
        self._call = open_stream(metadata=metadata)
        self.has_responded = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended, at either side."""
        return bool(self._call.done())

    async def ask(
        self, requests: Sequence[pb2.ValidateRequest], timeout_seconds: float
    ) -> Sequence[pb2.ValidateResponse] | None:
        """Send a batch and return what comes back; None when that is the stream's end, or nothing in so many seconds.

        Why is for a call to find out: the service may only have stopped. Without a response the stream is over, also
        when this is cancelled: the next batch must not get this one's response.
        """
        response: Any = None
        try:
            # Ending the stream is not enough: who writes to one that has no connection yet is not told of its end.
            async with asyncio.timeout(timeout_seconds):
                await self._call.write(pb2.StreamValidateRequest(requests=requests))
                response = await self._call.read()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError, TimeoutError):
            pass
        finally:
            if response is None:
                self.close()
        if not isinstance(response, pb2.StreamValidateResponse):  # but the mark of the end
            return None
        self.has_responded = True
        return response.responses

    def close(self) -> None:
        """End it."""
        self._call.cancel()


class _Line:
    """One channel and how it fares, and the stream on it. It can be opened anew."""

    def __init__(self, address: Address, tls: ClientTls | None, monotonic: Callable[[], float]) -> None:
        self._address = address
        self._tls = tls
        self._monotonic = monotonic
        self.calls = 0
        self.failed_at = float("-inf")
        """When the last call ended, if it failed."""
        self._stream: _BatchStream | None = None
        """The one that nobody uses now."""
        self._streams_from = float("-inf")
        self.open()

    def open(self) -> None:
        self.channel = open_channel(self._address, self._tls)
        self._stub = KeyServiceStub(self.channel)
        self.good_at = self._monotonic()
        """When it was opened, or last answered."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._needs_call = True
        """Before the next stream: a call finds out what is wrong, if anything is."""

    async def ask(
        self, requests: Sequence[pb2.ValidateRequest], metadata: Metadata, now: float, give_up_at: float
    ) -> Sequence[pb2.ValidateResponse]:
        """Return what the service answers, on a stream or in a call; raise what gRPC does.

        `give_up_at` is by the event loop's clock, `now` by ours.
        """
        stream, loop = self._take_stream(metadata, now), asyncio.get_running_loop()
        if stream is not None:
            channel, left_seconds = self.channel, give_up_at - loop.time()
            responses = await stream.ask(
                requests, left_seconds if stream.has_responded else min(left_seconds, _FIRST_RESPONSE_SECONDS)
            )
            if responses is not None:
                if len(responses) == len(requests) and self.channel is channel and self._stream is None:
                    self._stream = stream
                else:
                    stream.close()
                return responses
        self._needs_call = True
        request = pb2.BatchValidateRequest(requests=requests)
        left_seconds = give_up_at - loop.time()
        response: Any = await self._stub.BatchValidate(request, timeout=left_seconds, metadata=metadata)
        self._needs_call = False
        if stream is not None and not stream.has_responded:
            self._streams_from = now + _NO_STREAM_SECONDS
        return () if response is None else response.responses  # gRPC's word for bytes that are no message

    def _take_stream(self, metadata: Metadata, now: float) -> _BatchStream | None:
        """Return a stream for one batch, perhaps a new one; None where a call has to be made."""
        stream, self._stream = self._stream, None
        if stream is not None and not stream.is_over:
            return stream
        if self.calls > 1 or self._needs_call or now < self._streams_from:
            return None
        return _BatchStream(self._stub, metadata)


class KeyClient:
    """The key service at one address, over several channels. Made anywhere, used in one event loop; `close` ends it."""

    def __init__(
        self,
        address: Address,
        token: TokenSource,
        tls: ClientTls | None,
        monotonic: Callable[[], float],
        deadline_seconds: float = CALL_SECONDS_MAX,
    ) -> None:
        """Raise ConfigurationError for a bad TLS file; nothing is connected yet. The deadline is each call's."""
        self._address = address
        self._token = token
        self._tls = tls
        self._monotonic = monotonic
        self._deadline_seconds = deadline_seconds
        self._closed = False
        self._files_fault: str | None = None
        """Why no channel can be opened anew: the fault to mend, whatever the old channels fail with meanwhile."""
        self._retired: set[asyncio.Task[None]] = set()
        if tls is not None:
            tls.read()
        self._lines: list[_Line] = []
        """Made by the first call, in its event loop. The one that was used last is last."""

    async def validate(
        self, lookups: Sequence[tuple[ApiKey, str | None]]
    ) -> list[Response | KeyServiceUnavailableError]:
        """Ask about keys, each with the origin of a request: None for one without, else `sendable_origin`'s.

        Up to KEYS_PER_CALL_MAX at once. Return as many responses, or errors where the key service had none. Any fault
        of the call, a status other than OK included, is KeyServiceUnavailableError, and says nothing about a key.
        """
        requests = [pb2.ValidateRequest(api_key=api_key.reveal(), origin=origin) for api_key, origin in lookups]
        give_up_at = asyncio.get_running_loop().time() + self._deadline_seconds
        try:
            return await call_with_token(self._token, partial(self._call, requests, give_up_at))
        except grpc.aio.AioRpcError as error:
            raise KeyServiceUnavailableError(self._reason(error)) from None

    async def _call(
        self, requests: Sequence[pb2.ValidateRequest], give_up_at: float, metadata: Metadata
    ) -> list[Response | KeyServiceUnavailableError]:
        if self._closed:
            raise KeyServiceUnavailableError("this client is closed")
        try:
            if not self._lines:
                self._lines = [_Line(self._address, self._tls, self._monotonic) for _ in range(_CHANNELS)]
        except ConfigurationError as error:  # a file that was good when this was made
            raise KeyServiceUnavailableError(str(error)) from None
        now = self._monotonic()
        line = min(self._lines, key=lambda line: (now < line.failed_at + _REST_SECONDS, line.calls))
        self._lines.remove(line)
        self._lines.append(line)
        line.calls += 1
        try:
            responses = await line.ask(requests, metadata, now, give_up_at)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # Not this task's end: gRPC tells callers so when their channel is closed under them.
            raise KeyServiceUnavailableError("this client is closed") from None
        except grpc.aio.AioRpcError as error:
            line.failed_at = self._monotonic()
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._reopen_if_stale(line)
            raise
        except grpc.aio.BaseError as error:  # gRPC's own library refuses the call, the metadata for example
            raise KeyServiceUnavailableError(f"the call could not be sent ({type(error).__name__})") from None
        finally:
            line.calls -= 1
        line.good_at, line.failed_at, self._files_fault = self._monotonic(), float("-inf"), None
        if len(responses) != len(requests):
            raise KeyServiceUnavailableError(f"the key service answered {len(responses)} of {len(requests)} lookups")
        return [_typed(response) for response in responses]

    def _reason(self, error: grpc.aio.AioRpcError) -> str:
        who = f"the key service at {self._address}"
        match code := error.code():
            case grpc.StatusCode.UNAUTHENTICATED:
                return f"{who} refuses our token"
            case grpc.StatusCode.PERMISSION_DENIED:
                return f"{who} does not let our token validate keys"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{who} did not answer within {self._deadline_seconds:g} s"
            case grpc.StatusCode.UNAVAILABLE:
                fault = connection_fault(error.details() or "", self._address, self._tls)
                return fault or f"{who} can be reached, but answers UNAVAILABLE"
        return f"{who} answered {code.name}"

    def _reopen_if_stale(self, line: _Line) -> None:
        now = self._monotonic()
        if not self._closed and now - line.good_at >= _REOPEN_AFTER_SECONDS:
            stale = line.channel
            try:
                line.open()
            except ConfigurationError as error:  # a certificate is just being replaced, say: the old channel goes on
                line.good_at, self._files_fault = now, str(error)
            else:
                self._files_fault = None
                retired = asyncio.create_task(stale.close(grace=self._deadline_seconds))  # for the calls on their way
                self._retired.add(retired)
                retired.add_done_callback(self._retired.discard)
        if self._files_fault is not None:
            raise KeyServiceUnavailableError(self._files_fault) from None

    async def close(self) -> None:
        """End the calls on their way, which get KeyServiceUnavailableError, and the connections."""
        self._closed = True
        for retired in self._retired:
            retired.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        await asyncio.gather(*(line.channel.close() for line in self._lines))


def _typed(response: pb2.ValidateResponse) -> Response | KeyServiceUnavailableError:
    code = response.verdict
    if code == pb2.VERDICT_UNSPECIFIED:
        return KeyServiceUnavailableError("the key service could not ask its database in time")
    verdict = _VERDICTS.get(code)
    if verdict is None:
        return KeyServiceUnavailableError(f"the key service sent verdict {code}, which is none of ours")
    if verdict is Verdict.INVALID_KEY:
        decision = INVALID_KEY
    else:
        decision = Decision(verdict, response.project_id, response.key_id)
        if not decision.project_id or not decision.key_id:
            return KeyServiceUnavailableError(f"the key service sent verdict {verdict} without saying for which key")
    ttl = response.cache_ttl
    return Response(decision, response.any_origin, ttl.seconds + ttl.nanos / 1e9, response.revision, response.epoch)

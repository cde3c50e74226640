"""One Validate call to the key service: protobuf and status codes in, a typed answer or one error out.

`validator` calls it, and nothing else talks to the key service on the ingest path.
"""

import asyncio
from collections.abc import Callable

import grpc

from authsvc.client.channel import ClientTls, TokenSource, authorization, open_channel
from authsvc.client.diagnosis import diagnose
from authsvc.client.environment import Address, ConfigurationError, Secret
from authsvc.client.raw_key import RawKey
from authsvc.client.verdicts import (
    INVALID_KEY,
    ORIGIN_CHARACTERS_MAX,
    Answer,
    Decision,
    KeyServiceUnavailableError,
    Verdict,
)
from protos.authsvc.v1 import key_service_pb2 as pb2
from protos.authsvc.v1.key_service_pb2_grpc import KeyServiceStub

_VERDICTS = {
    pb2.VERDICT_ALLOWED: Verdict.ALLOWED,
    pb2.VERDICT_INVALID_KEY: Verdict.INVALID_KEY,
    pb2.VERDICT_ORIGIN_NOT_ALLOWED: Verdict.ORIGIN_NOT_ALLOWED,
}
# A channel that has failed for so long is replaced: gRPC retries an unknown host name with a back-off of up to two
# minutes that has no setting, and renewed certificate files are read by a new channel only.
_REOPEN_AFTER_SECONDS = 5.0
_DIAGNOSIS_SECONDS = 1.0


def sendable_origin(origin: str | None) -> str | None:
    """Return an origin that protobuf can carry, to be validated and cached in place of the given one.

    What is too long or not valid Unicode is replaced by the empty origin: no entry
    admits either, so the verdict is the same.
    """
    if origin is None or (len(origin) <= ORIGIN_CHARACTERS_MAX and origin.isascii()):
        return origin
    try:
        origin.encode()
    except UnicodeEncodeError:
        return ""
    return origin if len(origin) <= ORIGIN_CHARACTERS_MAX else ""


class KeyClient:
    """The key service at one address. Made and used in one event loop; `close` ends it."""

    def __init__(
        self,
        address: Address,
        token: TokenSource,
        tls: ClientTls | None,
        monotonic: Callable[[], float],
        deadline_seconds: float = 2.0,
    ) -> None:
        """Raise ConfigurationError when a TLS file cannot be used; nothing is connected yet.

        `deadline_seconds` bounds a call, connecting included.
        """
        self._address = address
        self._token = token
        self._tls = tls
        self._monotonic = monotonic
        self._deadline_seconds = deadline_seconds
        self._closed = False
        self._retired: set[asyncio.Task[None]] = set()
        self._diagnosing = False
        self._diagnosed_at = float("-inf")
        self._diagnosis: str | None = None
        self._open()

    def _open(self) -> None:
        self._channel = open_channel(self._address, self._tls)
        self._stub = KeyServiceStub(self._channel)
        self._good_at = self._monotonic()

    async def validate(self, api_key: RawKey, origin: str | None) -> Answer:
        """Ask whether the key may be used, and from the origin: None for a request without, else `sendable_origin`'s.

        Every fault, a status other than OK included, is KeyServiceUnavailableError:
        none says anything about the key.
        """
        request = pb2.ValidateRequest(api_key=api_key.reveal(), origin=origin)
        give_up_at = self._monotonic() + self._deadline_seconds
        token = self._token.read()
        try:
            return await self._call(request, token, give_up_at)
        except grpc.aio.AioRpcError as error:
            self._token.forget()
            code = error.code()
        renewed = self._token.read() if code is grpc.StatusCode.UNAUTHENTICATED else token
        if renewed.reveal() != token.reveal():
            try:
                return await self._call(request, renewed, give_up_at)
            except grpc.aio.AioRpcError as error:
                self._token.forget()
                code = error.code()
        raise KeyServiceUnavailableError(await self._reason(code))

    async def _call(self, request: pb2.ValidateRequest, token: Secret, give_up_at: float) -> Answer:
        if self._closed:
            raise KeyServiceUnavailableError("this client is closed")
        timeout_seconds = give_up_at - self._monotonic()
        try:
            response = await self._stub.Validate(request, timeout=timeout_seconds, metadata=authorization(token))
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # Not this task's end: gRPC tells callers so when their channel is closed under them.
            raise KeyServiceUnavailableError("this client is closed") from None
        except grpc.aio.BaseError as error:  # gRPC's own library refuses the call, the metadata for example
            raise KeyServiceUnavailableError(f"the call could not be sent ({type(error).__name__})") from None
        self._good_at = self._monotonic()
        return _answer(response)

    async def _reason(self, code: grpc.StatusCode) -> str:
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return f"the key service at {self._address} refuses our token"
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return f"the key service at {self._address} does not let our token validate keys"
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return f"the key service at {self._address} answered {code.name}"
        self._reopen_if_stale()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the key service at {self._address} did not answer within {self._deadline_seconds:g} s"
        return await self._diagnose() or f"the key service at {self._address} can be reached, but answers UNAVAILABLE"

    async def _diagnose(self) -> str | None:
        """Return the cause of an UNAVAILABLE, found by at most one connection a second; others get the last result."""
        if not self._diagnosing and self._monotonic() - self._diagnosed_at >= _DIAGNOSIS_SECONDS:
            self._diagnosing = True
            try:
                self._diagnosis = await diagnose(self._address, self._tls, _DIAGNOSIS_SECONDS)
                self._diagnosed_at = self._monotonic()
            finally:
                self._diagnosing = False
        return self._diagnosis

    def _reopen_if_stale(self) -> None:
        if self._closed or self._monotonic() - self._good_at < _REOPEN_AFTER_SECONDS:
            return
        stale = self._channel
        try:
            self._open()
        except ConfigurationError:  # a certificate is just being replaced, say: the diagnosis names it
            self._good_at = self._monotonic()
            return
        retired = asyncio.create_task(stale.close(grace=self._deadline_seconds))  # for the calls on their way
        self._retired.add(retired)
        retired.add_done_callback(self._retired.discard)

    async def close(self) -> None:
        """End the calls on their way, which get KeyServiceUnavailableError, and the connection."""
        self._closed = True
        for retired in self._retired:
            retired.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        await self._channel.close()


def _answer(response: pb2.ValidateResponse) -> Answer:
    verdict = _VERDICTS.get(response.verdict)
    if verdict is None:
        raise KeyServiceUnavailableError(f"the key service sent verdict {response.verdict}, which is none of ours")
    if verdict is Verdict.INVALID_KEY:
        decision = INVALID_KEY
    else:
        decision = Decision(verdict, response.project_id, response.key_id)
        if not decision.project_id or not decision.key_id:
            raise KeyServiceUnavailableError(f"the key service sent verdict {verdict} without saying for which key")
    ttl = response.cache_ttl
    return Answer(decision, response.any_origin, ttl.seconds + ttl.nanos / 1e9, response.revision, response.epoch)


def _is_cancelled() -> bool:
    """Whether the current task was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

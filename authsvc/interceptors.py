"""What stands between the wire and the servicers: caller roles, limits, errors as status codes, the request log.

Built by `app`. A `CallGuard` wraps every handler, ours and those of the health and
reflection services, once: gRPC's own interceptors would wrap them anew for each call,
which costs as much as the call's work.
"""

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, Self, TypeAlias

import grpc
import structlog

from authsvc.client.environment import Secret
from authsvc.client.event_log import traceback_without_text
from authsvc.config import Tokens
from authsvc.errors import (
    AlreadyExistsError,
    HolderGoneError,
    InvalidArgumentError,
    KeyServiceError,
    NotFoundError,
    RevisionsLostError,
    SlowHolderError,
    StoreUnavailableError,
    StreamEndedError,
    TooManyCallsError,
)

_STATUS: dict[type, grpc.StatusCode] = {
    KeyServiceError: grpc.StatusCode.INTERNAL,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    HolderGoneError: grpc.StatusCode.FAILED_PRECONDITION,
    RevisionsLostError: grpc.StatusCode.FAILED_PRECONDITION,
    SlowHolderError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StreamEndedError: grpc.StatusCode.UNAVAILABLE,
    StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
_BRIDGE_METHODS = frozenset(
    f"/authsvc.v1.KeyService/{name}" for name in ("Validate", "BatchValidate", "StreamValidate", "Watch")
)
_UNTIMED_METHODS = frozenset(f"/authsvc.v1.KeyService/{name}" for name in ("Validate", "BatchValidate"))
"""They wait for nothing but a look-up, each of whose steps has a time limit: a timer costs as much as their work."""
_STREAM_VALIDATE = "/authsvc.v1.KeyService/StreamValidate"
_TOO_MANY = "too many such calls are open already"
_LINE_SECONDS = 1.0
"""Between two lines about callers without a token, who could fill the disk with them."""

_Handler: TypeAlias = Any  # an RpcMethodHandler, of which the stubs know the synchronous kind only

_log = structlog.get_logger("authsvc")


class Role(StrEnum):
    """What a token lets its bearer call."""

    BRIDGE = "bridge"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What callers may take up."""

    calls_max: int = 7000
    """At a time, of which streams of holders are at most 5000, and streams of batches 1000."""
    connection_calls_max: int = 200
    """At a time on one connection; a caller's further calls wait at its end."""
    connections_max: int = 10_000
    """At a time, or fewer where the system allows fewer open files; a bridge has five, and each takes 15 KiB."""
    connection_idle_seconds: float = 300.0
    """Without a call, until it is closed; whoever waits for nothing reconnects at its next call. And of a stream of
    StreamValidate without a batch, until that is ended."""
    validate_streams_max: int = 1000
    """At a time; whoever finds no place makes a call for each batch instead."""
    open_calls_max: int = 100
    """At a time of each method that needs no token, so that strangers leave room for the others."""
    open_calls_host_max: int = 20
    """Of these from one host, so that one stranger leaves room for those who look whether the service is well."""
    call_seconds: float = 30.0
    """A call that is no stream; the database answers or fails well within this."""
    open_stream_seconds: float = 600.0
    """A stream that needs no token; whoever watches the service's health opens another."""
    keepalive_seconds: float = 30.0
    """Between pings, which find callers that vanished without a word."""
    keepalive_timeout_seconds: float = 10.0
    """For the answer to such a ping."""
    ping_seconds_min: float = 10.0
    """A caller that pings more often while nothing is sent is cut off."""


class _Thinned:
    """Lets one event a second into the log, and counts those that it keeps out."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._count = 0
        self._logged_at = float("-inf")

    def due(self) -> int:
        """Count an event; return how many there were since the last line if it is time for one, or else 0."""
        self._count += 1
        time = self._monotonic()
        if time - self._logged_at < _LINE_SECONDS:
            return 0
        count, self._count, self._logged_at = self._count, 0, time
        return count


class CallGuard(grpc.GenericRpcHandler):
    """Lets a call through to its handler if its token's role may make it.

    Servicers are added to it, and it to the server. Messages reach a guarded handler as
    bytes, to be read inside the guard: a fault in them is the caller's, like others.
    """

    def __init__(self, tokens: Tokens, limits: CallLimits, monotonic: Callable[[], float]) -> None:
        """`monotonic` is in seconds, for the request log."""
        self._authorizations = {
            Role.ADMIN: _authorization(tokens.admin),
            Role.BRIDGE: _authorization(tokens.bridge),
        }
        self._limits = limits
        self._monotonic = monotonic
        self.calls = 0
        """Under way now: of streams, a batch of StreamValidate is one."""
        self._validate_streams = 0
        self._idle_streams: set[Callable[[], None]] = set()
        """How to end those of StreamValidate that wait for a batch."""
        self._is_stopping = False
        self._logs_calls = _log.is_enabled_for(logging.DEBUG)
        self._handlers: dict[str, _Handler] = {}
        self._open_calls: Counter[str] = Counter()
        self._open_calls_of_hosts: Counter[tuple[str, str]] = Counter()
        self._refusals = _Thinned(monotonic)
        self._open_failures = _Thinned(monotonic)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code adds the same handlers by name, too."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, _Handler]) -> None:
        """Guard a service's handlers, as generated code adds them to a server."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            self._handlers[method] = self._guarded(method, handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """Return the handler for a call; None for a method that nobody serves."""
        method: str = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        if (refusal := self._refusal(method, handler_call_details.invocation_metadata)) is not None:
            return _stream(self._refuse(method, *refusal), handler)
        return handler

    def stop(self) -> None:
        """End streams of batches, each after the one that is under way: they go on elsewhere."""
        self._is_stopping = True
        for end in self._idle_streams:
            end()

    def _guarded(self, method: str, handler: _Handler) -> _Handler:
        limits = self._limits
        if method.startswith(_OPEN_SERVICES):
            is_stream = handler.request_streaming or handler.response_streaming
            seconds = limits.open_stream_seconds if is_stream else limits.call_seconds
            return _stream(self._counted(method, self._guard(method, self._open(handler), seconds)), handler)
        if handler.request_streaming:
            if method == _STREAM_VALIDATE:
                return _stream(self._guard(method, self._of_batches(handler), seconds=None), handler)

            async def serve(messages: AsyncIterator[bytes], context: Any) -> None:
                await handler.stream_stream(_read_all(handler, messages), context)

            return _stream(self._guard(method, serve, seconds=None), handler)
        serve_one = handler.unary_unary

        async def answer(message: bytes, context: Any) -> Any:
            self.calls += 1
            try:
                return await serve_one(_read(handler, message), context)
            finally:
                self.calls -= 1

        guarded = self._guard(method, answer, None if method in _UNTIMED_METHODS else limits.call_seconds)
        return grpc.unary_unary_rpc_method_handler(guarded, response_serializer=handler.response_serializer)

    def _of_batches(self, handler: _Handler) -> Any:
        """Serve streams of StreamValidate, of which each batch counts, and is logged, like a call."""

        async def serve(messages: AsyncIterator[bytes], context: Any) -> None:
            if self._validate_streams >= self._limits.validate_streams_max:
                raise TooManyCallsError(f"{self._validate_streams} streams of batches are open already")
            self._validate_streams += 1
            try:
                await self._serve_batches(handler, messages, context)
            finally:
                self._validate_streams -= 1

        return serve

    async def _serve_batches(self, handler: _Handler, messages: AsyncIterator[bytes], context: Any) -> None:
        batch = _Handed()
        async with aclosing(handler.stream_stream(batch, context)) as responses:
            while (message := await self._next_batch(messages)) is not None:
                started = self._monotonic()
                self.calls += 1
                try:
                    batch.message = _read(handler, message)
                    response = await anext(responses)
                finally:
                    self.calls -= 1
                await context.write(response)  # however long its caller takes to read, nobody waits for that
                if self._logs_calls:
                    self._log_call(_STREAM_VALIDATE, grpc.StatusCode.OK, started)

    async def _next_batch(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """Return the next message of a stream; None at its end, and at ours: it was idle for long, or we stop.

        A message that comes in the very instant of that is lost; its caller sees the end, and asks again in a call.
        """
        if self._is_stopping:
            return None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._limits.connection_idle_seconds, end)
        self._idle_streams.add(end)
        try:
            return await anext(messages, None)
        except asyncio.CancelledError:
            if not is_over:
                raise
            task.uncancel()
            return None
        finally:
            timer.cancel()
            self._idle_streams.discard(end)

    def _guard(self, method: str, call: Any, seconds: float | None) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            started = self._monotonic() if self._logs_calls else 0.0
            try:
                if seconds is None:
                    response = await call(request, context)
                else:
                    async with asyncio.timeout(seconds):
                        response = await call(request, context)
            except grpc.aio.InternalError as error:
                _end_without_status(method, error)
            except Exception as error:  # noqa: BLE001 - its text must not reach the caller, as grpc.aio would have it
                status, detail = self._fault(method, error, context)
            else:
                if self._logs_calls and method != _STREAM_VALIDATE:
                    self._log_call(method, grpc.StatusCode.OK, started)
                return response
            self._log_call(method, status, started)
            return await _abort(method, context, status, detail)

        return guarded

    def _fault(self, method: str, error: Exception, context: Any) -> tuple[grpc.StatusCode, str]:
        """Return what the caller is told of an error; log one that is ours."""
        if isinstance(error, KeyServiceError):
            return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), str(error)
        if isinstance(error, TimeoutError):
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the key service took too long"
        if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
            return grpc.StatusCode.UNIMPLEMENTED, "this service has no such method"  # says generated code
        count = self._open_failures.due() if method.startswith(_OPEN_SERVICES) else 1
        if count:
            what = {"error": type(error).__qualname__, "traceback": traceback_without_text(error)}
            _log.error("call_failed", method=method, count=count, **what)
        return grpc.StatusCode.INTERNAL, "internal error"

    def _log_call(self, method: str, status: grpc.StatusCode, started: float) -> None:
        milliseconds = round((self._monotonic() - started) * 1000, 2)
        _log.debug("call", method=method, status=status.name, milliseconds=milliseconds)

    def _counted(self, method: str, call: Any) -> Any:
        """Bound the calls of a method that needs no token.

        One that has had its time counts until its status is sent, as it does with gRPC: whoever takes no answers keeps
        the place that it has, and gets no more of them.
        """

        async def counted(messages: AsyncIterator[bytes], context: Any) -> None:
            of_host = method, context.peer().rpartition(":")[0]
            if (
                self._open_calls[method] >= self._limits.open_calls_max
                or self._open_calls_of_hosts[of_host] >= self._limits.open_calls_host_max
            ):
                await _abort(method, context, *self._fault(method, TooManyCallsError(_TOO_MANY), context))
            self._open_calls[method] += 1
            self._open_calls_of_hosts[of_host] += 1
            try:
                await call(messages, context)
            finally:
                self._open_calls[method] -= 1
                self._open_calls_of_hosts[of_host] -= 1
                if not self._open_calls_of_hosts[of_host]:
                    del self._open_calls_of_hosts[of_host]

        return counted

    def _open(self, handler: _Handler) -> Any:
        """Serve a call that needs no token, whatever it streams, as a stream.

        gRPC waits for the message of a call that is no stream before it calls the handler: for ever, if need be.
        """

        async def serve(messages: AsyncIterator[bytes], context: Any) -> None:
            # gRPC sends it with the first answer otherwise, and could not end the call while that cannot be written.
            await context.send_initial_metadata(())
            if handler.request_streaming:  # reflection
                async for response in handler.stream_stream(_read_all(handler, messages), context):
                    await context.write(response)
                return
            request = _read(handler, await anext(aiter(messages), b""))
            if handler.response_streaming:
                await handler.unary_stream(request, context)
            else:
                await context.write(await handler.unary_unary(request, context))

        return serve

    def _refuse(self, method: str, status: grpc.StatusCode, detail: str) -> Any:
        """Answer at once: as a stream, since gRPC would wait for the message of any other call."""

        async def refuse(_messages: AsyncIterator[bytes], context: Any) -> None:
            if count := self._refusals.due():
                # The last one, for the operator who looks for a bridge with a wrong token, and how many there were.
                _log.warning("calls_refused", status=status.name, method=method, peer=context.peer(), count=count)
            await _abort(method, context, status, detail)

        return refuse

    def _refusal(self, method: str, metadata: Any) -> tuple[grpc.StatusCode, str] | None:
        presented = [value for key, value in metadata or () if key == "authorization"]
        role = None
        if len(presented) == 1 and isinstance(presented[0], str):
            scheme, _, token = presented[0].partition(" ")
            text = f"{scheme.lower()} {token}".encode()
            for candidate, expected in self._authorizations.items():  # both, so that time tells nothing
                if hmac.compare_digest(text, expected):
                    role = candidate
        if role is None:
            return grpc.StatusCode.UNAUTHENTICATED, "a bearer token of the key service is needed"
        if role is Role.BRIDGE and method not in _BRIDGE_METHODS:
            return grpc.StatusCode.PERMISSION_DENIED, "this call needs the admin token"
        return None


class _Handed:
    """What a servicer reads its requests from: the one that it was handed last."""

    message: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return self.message


def _stream(serve: Any, handler: _Handler) -> _Handler:
    return grpc.stream_stream_rpc_method_handler(serve, response_serializer=handler.response_serializer)


def _read(handler: _Handler, message: bytes) -> Any:
    try:
        return handler.request_deserializer(message)
    except Exception:  # noqa: BLE001 - protobuf's own error, and its text may repeat the message
        raise InvalidArgumentError("the request is not a message of this method") from None


async def _read_all(handler: _Handler, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _read(handler, message)


async def _abort(method: str, context: Any, status: grpc.StatusCode, detail: str) -> NoReturn:
    """End a call with a status; say nothing of it where nobody is left to hear it."""
    try:
        await context.abort(status, detail)
    except grpc.aio.InternalError as error:
        _end_without_status(method, error)
    raise AssertionError("abort raises")


def _end_without_status(method: str, error: Exception) -> NoReturn:
    """End a call that is over already: its caller is gone. Anything else than this error grpc.aio logs at length."""
    _log.debug("caller_gone", method=method, error=type(error).__qualname__)
    raise asyncio.CancelledError from None


def _authorization(token: Secret) -> bytes:
    return f"bearer {token.reveal()}".encode()

"""What every call passes first: who may call and how much, errors as status codes, the request log.

A `CallGuard` wraps each handler once, also of health and reflection. gRPC's own interceptors would wrap it anew for
each call, which costs as much as the call's work.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc
import structlog

from authsvc.api import messages
from authsvc.api.batch_streams import BatchStreams
from authsvc.api.callers import Caller, Callers, Role
from authsvc.api.faults import Faults
from authsvc.api.limits import CallLimits
from authsvc.api.refusals import Refusals
from authsvc.runtime.networks import Networks, Places

_OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
_STREAM_VALIDATE = "/authsvc.v1.KeyService/StreamValidate"
_WATCH = "/authsvc.v1.KeyService/Watch"
_UNTIMED_METHODS = {"/authsvc.v1.KeyService/Validate", "/authsvc.v1.KeyService/BatchValidate"}
"""They wait for nothing but a lookup, each of whose steps has a time limit: a timer costs as much as their work."""
_BRIDGE_METHODS = _UNTIMED_METHODS | {_STREAM_VALIDATE, _WATCH}
_PROMPT_METHODS = _BRIDGE_METHODS | {"/authsvc.v1.KeyService/Revoke", "/authsvc.v1.KeyService/SetOrigins"}
"""What takes something back, and what that rests on."""
_NEVER = float("inf")
_SWEEP_SECONDS = 1.0

_Handler: TypeAlias = Any  # an RpcMethodHandler, of which the stubs know the synchronous kind only

_log = structlog.get_logger("authsvc")


class CallGuard(grpc.GenericRpcHandler):
    """Lets a call through to its handler if its token's role may make it.

    Handlers get bytes, which are read inside the guard: a fault in them is the caller's.
    """

    def __init__(
        self,
        callers: Callers,
        limits: CallLimits,
        trusted_proxies: Networks,
        monotonic: Callable[[], float],
        close: Callable[[str], None],
    ) -> None:
        """`close` closes a connection, as gRPC names it."""
        self._callers = callers
        self._refusals = Refusals(limits, trusted_proxies, monotonic, close)
        self._limits = limits
        self._trusted_proxies = trusted_proxies
        self._monotonic = monotonic
        self._calls = 0
        self._held: dict[Any, _Held] = {}
        """By its context, each call until its caller has taken how it ended."""
        self._bridge_calls = Places(limits.calls_max, trusted_proxies)
        self._admin_calls = Places(limits.admin_calls_max, trusted_proxies)
        self._logs_calls = _log.is_enabled_for(logging.DEBUG)
        self._handlers: dict[str, _Handler] = {}
        """Guarded, by method."""
        self._faults = Faults(monotonic)
        self._batches = BatchStreams(
            limits.connection_idle_seconds, monotonic, partial(self._log_call, _STREAM_VALIDATE, grpc.StatusCode.OK)
        )

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code adds the same handlers by name, too."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, _Handler]) -> None:
        """Guard a service's handlers, as generated code adds them to a server."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            self._handlers[method] = self._guarded(method, handler)

    def register(self, server: grpc.aio.Server) -> None:
        """Add to a server, each by itself, the methods that floods of others must not delay.

        All others share one queue of calls. Each queue costs every call: grpc.aio waits for all of them, anew for each.
        """
        for method in _PROMPT_METHODS:
            _, service, name = method.split("/")
            server.add_registered_method_handlers(service, {name: self._handlers[method]})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """Return the handler of another method, also of one that nobody serves: gRPC would refuse but not bound it."""
        method: str = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]

        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> None:
            has_token = self._callers.role(context) is not None
            refusal = _Refusal(grpc.StatusCode.UNIMPLEMENTED, "no such method is served", has_token)
            await self._refuse(method, context, self._callers.caller(context), refusal)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def in_use(self) -> set[str]:
        """Return the connections on which there is a call with a token now, as gRPC names them."""
        return {held.caller.connection for held in self._held.values() if held.has_token}

    async def run(self) -> None:
        """Look after calls that their callers hold on to, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._refusals.flush()
            overdue = self._monotonic() - self._limits.call_seconds - self._limits.untaken_seconds
            for held in self._held.values():
                if held.since < overdue:
                    self._refusals.close(held.caller, "it does not read its responses")

    @property
    def calls(self) -> int:
        """How many are under way now: of streams, a batch of StreamValidate is one."""
        return self._calls + self._batches.calls

    def stop(self) -> None:
        """End streams of batches, each after the one that is under way: they go on elsewhere."""
        self._batches.stop()

    def _guarded(self, method: str, handler: _Handler) -> _Handler:
        limits = self._limits
        is_stream = handler.request_streaming or handler.response_streaming
        if method.startswith(_OPEN_SERVICES):
            places = Places(limits.open_calls_max, self._trusted_proxies)
            seconds = limits.open_stream_seconds if is_stream else limits.call_seconds
            return _stream(self._guard(method, self._open(handler), places, seconds), handler)
        if is_stream:
            is_watch = method == _WATCH
            places = Places(limits.holders_max if is_watch else limits.validate_streams_max, self._trusted_proxies)

            async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
                if is_watch:
                    await self._send_metadata(context, self._callers.caller(context))
                    await handler.stream_stream(_read_all(handler, requests), context)
                else:
                    await self._batches.serve(handler, requests, context)

            return _stream(self._guard(method, serve, places, None), handler)
        serve_one = handler.unary_unary

        async def serve_unary(_requests: AsyncIterator[bytes], context: Any) -> Any:
            message = await context.read()
            self._calls += 1
            try:
                return await serve_one(messages.parse(handler, message), context)
            finally:
                self._calls -= 1

        places = self._bridge_calls if method in _BRIDGE_METHODS else self._admin_calls
        guarded = self._guard(method, serve_unary, places, None if method in _UNTIMED_METHODS else limits.call_seconds)
        # As a stream of one: gRPC waits for the message of any other call before it calls the handler, for ever.
        return grpc.stream_unary_rpc_method_handler(guarded, response_serializer=handler.response_serializer)

    def _guard(self, method: str, call: Any, places: Places, seconds: float | None) -> Any:
        is_open = method.startswith(_OPEN_SERVICES)
        is_call = method in _UNTIMED_METHODS or not (is_open or seconds is None)

        async def guarded(requests: Any, context: Any) -> Any:
            caller = self._callers.caller(context)
            if (refusal := self._refusal(method, context)) is None and not places.take(caller.address):
                refusal = _Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "too many such calls are open already", not is_open
                )
            if refusal is not None:
                return await self._refuse(method, context, caller, refusal)
            started = self._monotonic()
            held = self._held[context] = _Held(caller, places, started if is_call else _NEVER, not is_open)
            context.add_done_callback(self._release)
            try:
                if seconds is None:
                    response = await call(requests, context)
                else:
                    async with asyncio.timeout(seconds):
                        response = await call(requests, context)
            except grpc.aio.InternalError as error:
                _end_without_status(method, error)
            except Exception as error:  # noqa: BLE001 - its text must not reach the caller, as grpc.aio would have it
                status, detail = self._faults.told(method, error, context, caller.address if is_open else None)
            else:
                if not is_call:
                    held.since = self._monotonic()  # from now on its end is all that there is to take
                if method != _STREAM_VALIDATE:
                    self._log_call(method, grpc.StatusCode.OK, started)
                return response
            self._log_call(method, status, started)
            return await self._abort(method, context, caller, status, detail)

        return guarded

    def _refusal(self, method: str, context: Any) -> "_Refusal | None":
        if method.startswith(_OPEN_SERVICES):
            return None
        role = self._callers.role(context)
        if role is None:
            return _NO_TOKEN
        if role is Role.BRIDGE and method not in _BRIDGE_METHODS:
            return _NO_ADMIN
        return None

    def _release(self, context: Any) -> None:
        """Count a call no longer: its caller has taken how it ended, or is gone."""
        held = self._held.pop(context)
        held.places.release(held.caller.address)

    def _log_call(self, method: str, status: grpc.StatusCode, started: float) -> None:
        if self._logs_calls:
            milliseconds = round((self._monotonic() - started) * 1000, 2)
            _log.debug("call", method=method, status=status.name, milliseconds=milliseconds)

    def _open(self, handler: _Handler) -> Any:
        """Serve a call that needs no token as a stream, also a unary one: see `_guarded`."""

        async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
            caller = self._callers.caller(context)
            await self._send_metadata(context, caller)
            if handler.request_streaming:  # reflection
                async for response in handler.stream_stream(_read_all(handler, requests), context):
                    await self._refusals.turn(caller)
                    with self._refusals.sending(caller):
                        await context.write(response)
                return
            request = messages.parse(handler, await anext(aiter(requests), b""))
            await self._refusals.turn(caller)
            if handler.response_streaming:
                await handler.unary_stream(request, context)
                return
            response = await handler.unary_unary(request, context)
            with self._refusals.sending(caller):
                await context.write(response)

        return serve

    async def _send_metadata(self, context: Any, caller: Caller) -> None:
        """Begin the response: until then gRPC could not end the call."""
        with self._refusals.sending(caller):
            await context.send_initial_metadata(())

    async def _refuse(self, method: str, context: Any, caller: Caller, refusal: "_Refusal") -> NoReturn:
        if self._refusals.is_closing(caller):
            raise asyncio.CancelledError  # gRPC ends the call when it sees the end of the connection
        fields = {"method": method, "status": refusal.status.name}
        async with self._refusals.refusing(caller, has_token=refusal.has_token, **fields):
            await self._abort(method, context, caller, refusal.status, refusal.detail)
        raise AssertionError("abort raises")

    async def _abort(self, method: str, context: Any, caller: Caller, status: grpc.StatusCode, detail: str) -> NoReturn:
        """End a call with a status; say nothing of it where nobody is left to hear it."""
        with self._refusals.sending(caller):
            try:
                await context.abort(status, detail)
            except grpc.aio.InternalError as error:
                _end_without_status(method, error)
        raise AssertionError("abort raises")


class _Refusal(NamedTuple):
    status: grpc.StatusCode
    detail: str
    has_token: bool
    """The caller has one of ours."""


_NO_TOKEN = _Refusal(grpc.StatusCode.UNAUTHENTICATED, "a bearer token of the key service is needed", has_token=False)
_NO_ADMIN = _Refusal(grpc.StatusCode.PERMISSION_DENIED, "this call needs the admin token", has_token=True)


@dataclass(slots=True)
class _Held:
    """A call that is not over for its caller."""

    caller: Caller
    places: Places
    since: float
    """Since when it has been for the caller to end it."""
    has_token: bool


def _stream(serve: Any, handler: _Handler) -> _Handler:
    return grpc.stream_stream_rpc_method_handler(serve, response_serializer=handler.response_serializer)


async def _read_all(handler: _Handler, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for message in requests:
        yield messages.parse(handler, message)


def _end_without_status(method: str, error: Exception) -> NoReturn:
    """End a call that is over already: its caller is gone. Anything else than this error grpc.aio logs at length."""
    _log.debug("caller_gone", method=method, error=type(error).__qualname__)
    raise asyncio.CancelledError from None

"""What stands between the wire and `service`: caller roles, errors as status codes, deadlines, the request log.

Built by `app`. `CallInterceptor` wraps every handler of ours; the health and
reflection services pass through.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, TypeAlias

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
    SlowHolderError,
    StoreUnavailableError,
    StreamEndedError,
)

_STATUS = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    HolderGoneError: grpc.StatusCode.FAILED_PRECONDITION,
    SlowHolderError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StreamEndedError: grpc.StatusCode.UNAVAILABLE,
    StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
}
_OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
_BRIDGE_METHODS = frozenset({"/authsvc.v1.KeyService/Validate", "/authsvc.v1.KeyService/Watch"})
# A caller that sets no deadline must not hold a place for ever; the database answers or fails well within this.
_DEADLINE_SECONDS_MAX = 30.0

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only

_log = structlog.get_logger("authsvc")


class Role(StrEnum):
    """What a token lets its bearer call."""

    BRIDGE = "bridge"
    ADMIN = "admin"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through to its handler if its token's role may make it."""

    def __init__(self, tokens: Tokens, monotonic: Callable[[], float]) -> None:
        """`monotonic` is in seconds, for the request log."""
        self._authorizations = {
            Role.ADMIN: _authorization(tokens.admin),
            Role.BRIDGE: _authorization(tokens.bridge),
        }
        self._monotonic = monotonic

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Return the handler, wrapped; of a method that nobody serves, what gRPC makes of it."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        refusal = self._refusal(method, handler_call_details.invocation_metadata)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._guard(method, handler.stream_stream, refusal, deadline_seconds=None),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._guard(method, handler.unary_unary, refusal, _DEADLINE_SECONDS_MAX),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guard(
        self, method: str, call: Any, refusal: tuple[grpc.StatusCode, str] | None, deadline_seconds: float | None
    ) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            started = self._monotonic()
            status, detail = refusal or (grpc.StatusCode.OK, "")
            response = None
            try:
                if refusal is None:
                    async with asyncio.timeout(deadline_seconds):
                        response = await call(request, context)
            except KeyServiceError as error:
                status, detail = _STATUS[type(error)], str(error)
            except TimeoutError:
                status, detail = grpc.StatusCode.DEADLINE_EXCEEDED, "the key service took too long"
            except Exception as error:  # noqa: BLE001 - its text must not reach the caller, as grpc.aio would have it
                name, traceback = type(error).__qualname__, traceback_without_text(error)
                _log.error("call_failed", method=method, error=name, traceback=traceback)
                status, detail = grpc.StatusCode.INTERNAL, "internal error"
            milliseconds = round((self._monotonic() - started) * 1000, 2)
            _log.debug("call", method=method, status=status.name, milliseconds=milliseconds)
            if status is not grpc.StatusCode.OK:
                await context.abort(status, detail)
            return response

        return guarded

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


def _authorization(token: Secret) -> bytes:
    return f"bearer {token.reveal()}".encode()

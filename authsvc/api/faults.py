"""Errors as gRPC's status codes, and what callers are told of them. `interceptors` asks it."""

from collections.abc import Callable
from typing import Any

import grpc
import structlog

from authsvc.errors import (
    AlreadyExistsError,
    HolderReleasedError,
    InvalidArgumentError,
    KeyServiceError,
    NotFoundError,
    RevisionsLostError,
    SlowHolderError,
    StoreUnavailableError,
    StreamEndedError,
    TooManyHoldersError,
)
from authsvc.runtime.logging import traceback_without_text

_STATUS: dict[type, grpc.StatusCode] = {
    KeyServiceError: grpc.StatusCode.INTERNAL,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    HolderReleasedError: grpc.StatusCode.FAILED_PRECONDITION,
    RevisionsLostError: grpc.StatusCode.FAILED_PRECONDITION,
    SlowHolderError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyHoldersError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StreamEndedError: grpc.StatusCode.UNAVAILABLE,
    StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
}

_log = structlog.get_logger("authsvc")


class Faults:
    """Tells callers of errors, and the operator of those that are ours."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._of_strangers = _Thinned(monotonic)

    def told(self, method: str, error: Exception, context: Any, *, is_open: bool) -> tuple[grpc.StatusCode, str]:
        """Return what the caller is told of an error; log one that is ours. `is_open`: the method needs no token."""
        if isinstance(error, KeyServiceError):
            return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), str(error)
        if isinstance(error, TimeoutError):
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the key service took too long"
        if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
            return grpc.StatusCode.UNIMPLEMENTED, "this service has no such method"  # says generated code
        count = self._of_strangers.due() if is_open else 1
        if count:
            what = {"error": type(error).__qualname__, "traceback": traceback_without_text(error)}
            _log.error("call_failed", method=method, count=count, **what)
        return grpc.StatusCode.INTERNAL, "internal error"


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
        if time - self._logged_at < 1.0:
            return 0
        count, self._count, self._logged_at = self._count, 0, time
        return count

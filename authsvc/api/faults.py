"""Errors as gRPC's status codes, and what callers are told of them."""

from collections.abc import Callable
from typing import Any

import grpc
import structlog

from authsvc import errors
from authsvc.runtime.logging import traceback_without_text
from authsvc.runtime.tally import Tally

_STATUS: dict[type, grpc.StatusCode] = {
    errors.KeyServiceError: grpc.StatusCode.INTERNAL,
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.HolderReleasedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RevisionsLostError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SlowHolderError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyHoldersError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StreamEndedError: grpc.StatusCode.UNAVAILABLE,
    errors.StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
}

_log = structlog.get_logger("authsvc")


class Faults:
    """Tells callers of errors, and the operator of those that are ours."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._unauthenticated = Tally(monotonic, lambda **fields: _log.error("call_failed", **fields))

    def told(self, method: str, error: Exception, context: Any, address: str | None) -> tuple[grpc.StatusCode, str]:
        """Return what the caller is told of an error; log one that is ours.

        `address` is the caller's where the method needs no token: lines for each call could fill the disk.
        """
        if isinstance(error, errors.KeyServiceError):
            return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), str(error)
        if isinstance(error, TimeoutError):
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the key service took too long"
        if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
            return grpc.StatusCode.UNIMPLEMENTED, "this service has no such method"  # says generated code
        what = {"method": method, "error": type(error).__qualname__, "traceback": traceback_without_text(error)}
        if address is None:
            _log.error("call_failed", count=1, **what)
        else:
            self._unauthenticated.add(address, **what)
        return grpc.StatusCode.INTERNAL, "internal error"

"""StreamValidate from the caller's side: one batch at a time, for a quarter of what a call costs both sides."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from authsvc.client.channel import Metadata
from authsvc.v1 import key_service_pb2 as pb2
from authsvc.v1.key_service_pb2_grpc import KeyServiceStub


class BatchStream:
    """One stream, used by one task at a time."""

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

"""zstd, which Python has by itself from 3.14 on, and how chunks are compressed."""

import sys
import threading

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["compress", "zstd"]

_OPTIONS = {int(zstd.CompressionParameter.compression_level): 1, int(zstd.CompressionParameter.checksum_flag): 1}
"""A higher level costs three times as much and gains nothing on logs, measured."""

_SMALL_BYTES = 32 * 1024
_local = threading.local()


def compress(text: bytes) -> bytes:
    """Compress the content of a chunk; for any thread."""
    if len(text) > _SMALL_BYTES:  # to keep what it is done with would cost each thread half a megabyte
        return zstd.compress(text, options=_OPTIONS)
    compressor: zstd.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        # Kept, as to make one costs as much as to compress a small chunk.
        compressor = _local.compressor = zstd.ZstdCompressor(options=_OPTIONS)
    return compressor.compress(text, mode=zstd.ZstdCompressor.FLUSH_FRAME)

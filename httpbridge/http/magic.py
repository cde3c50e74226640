"""What a body looks like that is not what it is announced to be, by the numbers that it begins with. Pure.

Used by `bodies` and `json_text` to say what is probably wrong, once something is.
"""

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"\xff\x06\0\0sNaPpY", "snappy"),
)
_DECODED = ("gzip", "deflate")
_UTF_16_AND_32 = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"\0\0\0{", b"\0\0\xfe\xff")


def sentence(body: bytes) -> str | None:
    """Say what a body looks like that came without Content-Encoding and is not JSON; None where nothing shows."""
    name = compression(body)
    if name in _DECODED:
        return f"The body looks like {name}, and the header Content-Encoding: {name} is missing"
    if name is not None:
        return f"The body looks like {name}, which is not decoded here: send it as gzip, as deflate, or as it is"
    if body.startswith(_UTF_16_AND_32):
        return "The body looks like UTF-16 or UTF-32: send it in UTF-8"
    return None


def misencoded(body: bytes, announced: str) -> str | None:
    """Say what a body looks like that is not encoded as Content-Encoding announces; None where nothing shows."""
    name = compression(body)
    if name == announced:
        return None
    if name in _DECODED:
        return f"The body is not valid {announced}: it looks like {name}, as which the header should announce it"
    if name is not None:
        return f"The body is not valid {announced}: it looks like {name}, which is not decoded here"
    if body[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return f"The body is not valid {announced}: it looks like JSON, which needs no Content-Encoding"
    return None


def compression(body: bytes) -> str | None:
    """Return the name of the format whose number a body begins with."""
    for number, name in _COMPRESSED:
        if body.startswith(number):
            return name
    # RFC 1950, 2.2: the usual window of 32 KiB, and a check. `x` alone begins no JSON.
    if body[:1] == b"\x78" and len(body) > 1 and int.from_bytes(body[:2], "big") % 31 == 0:
        return "deflate"
    return None

"""The requests that benchmarks send: keys that the store has or has not, bodies of so many log entries. Pure."""

import json

INGEST = "/ingest/logs"
FOREIGN_ORIGIN = "https://elsewhere.example"
"""An origin that the projects with an origin list here do not admit."""

MALFORMED_KEY = "dt_0123456789abcdef"


def key(number: int) -> str:
    """Return the API key with that number; `rig.keys` stores those from 0 on."""
    return f"dt_{number:024x}"


def unknown_key(number: int) -> str:
    """Return a well-formed key that no store here has."""
    return f"dt_{(1 << 95) + number:024x}"


def body(entries: int) -> bytes:
    """Return a batch of so many log entries of about 200 bytes each, as SDKs send them."""
    logs = [
        {
            "level": "info",
            "message": f"order {100_000 + index} was paid by card; the receipt went out",
            "timestamp": f"2026-01-31T08:15:{index % 60:02}.{index % 1000:03}Z",
            "metadata": {"order": 100_000 + index, "currency": "EUR", "milliseconds": 37.5},
        }
        for index in range(entries)
    ]
    return json.dumps({"service": "checkout", "environment": "production", "logs": logs}).encode()


def head(api_key: str, body_bytes: int, origin: str | None = None) -> bytes:
    """Return the request line and headers of an ingest request."""
    lines = [
        f"POST {INGEST} HTTP/1.1",
        "Host: bench",
        f"Authorization: Bearer {api_key}",
        "Content-Type: application/json",
        f"Content-Length: {body_bytes}",
    ]
    if origin is not None:
        lines.append(f"Origin: {origin}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()

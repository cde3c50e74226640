"""The line for a shell that sends a log: with a key that was just issued, or where one is to be put. Pure.

Used by `api_keys`, `logs` and `origins`.
"""

KEY_VARIABLE = "$DEEPTRACER_KEY"
"""Stands for the key where it is not known; the shell puts it in, named as in `.env.local`."""


def curl_line(clients_url: str, key: str = KEY_VARIABLE, *, origin: str = "") -> str:
    """Return the line. `clients_url` is where clients reach the bridge; `origin` is for a log as a page sends it."""
    return (
        f"curl -sS -w '\\n' {clients_url}/ingest/logs "
        f'-H "Authorization: Bearer {key}" '
        + (f"-H 'Origin: {origin}' " if origin else "")
        + "-H 'Content-Type: application/json' "
        """-d '{"service": "hello", "logs": [{"level": "info", "message": "hello, world"}]}'"""
    )

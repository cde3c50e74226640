"""Who a request is said to come from: what trusted proxies say is believed, and nobody else."""

import pytest
import structlog

from authsvc.runtime.networks import Networks
from tests.httpbridge.conftest import KEY, request, running_bridge


@pytest.mark.parametrize(
    ("trusted", "header", "client"),
    [
        ("", "X-Forwarded-For: 192.0.2.1", "127.0.0.1"),
        ("10.0.0.0/8", "X-Forwarded-For: 192.0.2.1", "127.0.0.1"),
        ("127.0.0.1", "X-Forwarded-For: 192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "Forwarded: for=192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "X-Forwarded-For: 203.0.113.7, 192.0.2.1", "192.0.2.1"),
        ("127.0.0.1 192.0.2.0/24", "X-Forwarded-For: 203.0.113.7, 192.0.2.1", "203.0.113.7"),
        ("127.0.0.1", f"X-Forwarded-For: {KEY}", "127.0.0.1"),
        ("127.0.0.1", f"X-Forwarded-For: fe80::1%{KEY}", "fe80::1"),
        ("127.0.0.1", "X-Forwarded-For: 192.0.2.1\tx", "127.0.0.1"),
    ],
)
async def test_the_request_log_names_the_client_that_is_believed(trusted: str, header: str, client: str) -> None:
    """And no byte of what is no address."""
    with structlog.testing.capture_logs() as events:
        async with running_bridge(trusted_proxies=Networks.parse(trusted)) as bridge:
            await bridge.exchange(request("GET", "/health", header, key=None))
    assert [event["client"] for event in events if event["event"] == "request"] == [client]
    assert KEY not in repr(events)

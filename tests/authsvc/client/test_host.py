"""The client in somebody else's program: what the obvious lines do, and what the host need not do."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from authsvc.client import Decision, KeyRefusedError, KeyServiceUnavailableError, KeyValidator, Verdict
from authsvc.client.channel import ClientTls
from authsvc.runtime.environment import Address, ConfigurationError
from tests.authsvc.client.fake_key_service import FakeKeyService, allowed, invalid, refused, serve
from tests.e2e.processes import free_port

KEY = "dt_0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("verdict", "is_admitted"),
    [(Verdict.ALLOWED, True), (Verdict.INVALID_KEY, False), (Verdict.ORIGIN_NOT_ALLOWED, False)],
)
def test_a_decision_is_true_only_if_it_admits(verdict: Verdict, is_admitted: bool) -> None:
    assert bool(Decision(verdict, "shop", "key_1")) is is_admitted


@pytest.mark.parametrize(("answer", "status"), [(allowed(), 200), (invalid(), 401), (refused(), 403)])
async def test_the_obvious_lines_let_nobody_in_who_is_refused(
    service: FakeKeyService, validator: KeyValidator, answer: object, status: int
) -> None:
    service.answer = answer  # type: ignore[assignment]

    async def with_if() -> int:
        if await validator.validate(KEY, "https://shop.example"):
            return 200
        return 401 if status == 401 else 403

    async def with_require() -> int:
        try:
            await validator.require(KEY, "https://shop.example")
        except KeyRefusedError as error:
            return 401 if error.decision.verdict is Verdict.INVALID_KEY else 403
        return 200

    assert (await with_if(), await with_require()) == (status, status)


async def test_what_is_required_says_whose_key_it_is(validator: KeyValidator) -> None:
    assert (await validator.require(KEY)).project_id == "demo"


async def test_a_key_that_is_none_is_refused_without_a_lookup(service: FakeKeyService, validator: KeyValidator) -> None:
    with pytest.raises(KeyRefusedError, match="invalid API key") as caught:
        await validator.require("not a key")
    assert "not a key" not in str(caught.value)
    assert service.batches == []


async def test_a_fault_is_no_refusal() -> None:
    async with KeyValidator("127.0.0.1:1", "a-token-that-nobody-knows-0123456789") as validator:
        with pytest.raises(KeyServiceUnavailableError):
            await validator.require(KEY)


def test_it_is_made_before_there_is_an_event_loop_and_used_in_the_first_one(service: FakeKeyService) -> None:
    async def use(validator: KeyValidator) -> None:
        async with validator:
            assert await validator.validate(KEY)

    async def main() -> None:
        server, port = serve(service, f"127.0.0.1:{address.port}")
        assert port == address.port
        await server.start()
        await use(validator)
        await server.stop(None)

    address = Address("127.0.0.1", free_port())
    validator = KeyValidator(address, service.token)
    asyncio.run(main())


def test_it_says_so_when_it_is_used_in_another_event_loop() -> None:
    validator = KeyValidator("127.0.0.1:1", "a-token-that-nobody-knows-0123456789")

    async def ask() -> None:
        await validator.validate(KEY)

    with pytest.raises(KeyServiceUnavailableError):
        asyncio.run(ask())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(ask())


def test_a_file_that_cannot_be_used_is_told_where_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        KeyValidator("127.0.0.1:1", "a-token-that-nobody-knows-0123456789", tls=ClientTls(ca=tmp_path / "missing.pem"))


HOST = """
import asyncio, logging, sys
for name in ("structlog", "sqlalchemy", "aiosqlite", "alembic", "aiohttp", "click", "jinja2", "uvloop"):
    sys.modules[name] = None  # whoever imports it fails
from authsvc.client import KeyServiceUnavailableError, KeyValidator
if len(sys.argv) > 1:
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")

async def main():
    async with KeyValidator("127.0.0.1:1", "a-token-that-nobody-knows-0123456789") as validator:
        try:
            await validator.validate("dt_0123456789abcdef01234567")
        except KeyServiceUnavailableError:
            return
asyncio.run(main())
"""


def run_host(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", HOST, *arguments], capture_output=True, text=True, timeout=60)


def test_it_prints_nothing_in_a_program_that_does_not_log() -> None:
    done = run_host()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_logs_where_the_host_has_logging() -> None:
    done = run_host("log")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("WARNING authsvc.client key_service_not_reached reason=")
    assert done.stderr.count("\n") == 1


SERVICE = """
import sys
from authsvc.runtime.logging import LogFormat, LogLevel, configure
from authsvc.runtime.library_logging import EventLogger
configure(LogLevel(sys.argv[1]), LogFormat.JSON, worker="3")
EventLogger().info("lease_granted", holder="h1")
EventLogger().warning("lease_lost")
"""


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("info", [("lease_granted", "info", "h1", "3"), ("lease_lost", "warning", None, "3")]),
        ("warning", [("lease_lost", "warning", None, "3")]),
    ],
)
def test_the_services_log_its_events_with_their_fields(level: str, expected: object) -> None:
    done = subprocess.run([sys.executable, "-c", SERVICE, level], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["level"], line.get("holder"), line["worker"]) for line in lines] == expected

"""`make audit`: every pinned package is looked up, a vulnerability fails, and data unavailable do not."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts import audit

ROOT = Path(__file__).parent.parent
VULNERABILITY = {"id": "GHSA-0000-0000-0000", "summary": "Everything is open", "modified": "2026-01-01T00:00:00Z"}


class Osv(ThreadingHTTPServer):
    """Answers as OSV does: `vulnerable` packages have a vulnerability; `answers` or hangs up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OsvHandler)
        self.vulnerable: set[str] = set()
        self.answers = True
        self.asked: set[tuple[str, str]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class OsvHandler(BaseHTTPRequestHandler):
    """One call."""

    server: Osv

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        names = [query["package"]["name"] for query in queries]
        self.server.asked |= {(name, query["version"]) for name, query in zip(names, queries, strict=True)}
        found = {"vulns": [{"id": VULNERABILITY["id"], "modified": VULNERABILITY["modified"]}]}
        self._answer({"results": [found if name in self.server.vulnerable else {} for name in names]})

    def do_GET(self) -> None:
        self._answer(VULNERABILITY)

    def _answer(self, value: Any) -> None:
        self.send_response(200 if self.server.answers else 503)
        body = json.dumps(value).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def osv() -> Iterator[Osv]:
    with Osv() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("name", ["requirements-dev.lock", "requirements.lock"])
def test_all_that_a_lock_file_pins_is_looked_up(osv: Osv, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert audit.main(["--service-url", osv.url], ROOT / name) == 0
    pinned = re.findall(r"^([^\s=#]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    assert {(re.sub(r"\[.*\]", "", name), version) for name, version in pinned} == osv.asked
    assert len(osv.asked) > 25
    assert "no known vulnerabilities" in capsys.readouterr().out


def test_the_lock_file_that_is_audited_has_all_that_the_other_one_has() -> None:
    pins = [
        set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", audit.LOCK.name)
    ]
    assert pins[0] <= pins[1]


def test_a_known_vulnerability_fails_and_is_shown(osv: Osv, capsys: pytest.CaptureFixture[str]) -> None:
    osv.vulnerable = {"jinja2"}
    assert audit.main(["--service-url", osv.url]) == audit.FOUND
    printed = capsys.readouterr().out
    assert "jinja2" in printed
    assert f"{VULNERABILITY['id']}: {VULNERABILITY['summary']}" in printed


@pytest.mark.parametrize("is_there", [True, False])
def test_data_out_of_reach_fail_nothing_and_are_said_to_be(
    osv: Osv, capsys: pytest.CaptureFixture[str], is_there: bool
) -> None:
    osv.answers = False
    url = osv.url if is_there else "http://127.0.0.1:1"
    assert audit.main(["--service-url", url]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("not audited, the data on vulnerabilities are unavailable:\n")
    assert url in printed


def test_an_answer_is_not_waited_for_without_end(
    osv: Osv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SECONDS_MAX", 0.0)
    assert audit.main(["--service-url", osv.url]) == 0
    assert capsys.readouterr().out == "not audited: no answer within 0 s\n"


def test_a_failure_that_is_no_connections_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as options that uv does not know, or a lock file that it cannot read."""
    assert audit.main(["--no-such-option"]) == 2
    assert "--no-such-option" in capsys.readouterr().out

"""No API key and no token is in anything that the system writes, whatever goes wrong. Both services log at DEBUG."""

import asyncio
import contextlib
import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from authsvc.v1 import project_service_pb2 as project_pb2
from authsvc.v1 import project_service_pb2_grpc as project_pb2_grpc
from tests.e2e.processes import Service, System
from tests.http_exchange import BODY, Connection, exchange, get, post, request
from tests.httpbridge.dashboard.conftest import Answer as DashboardAnswer
from tests.httpbridge.dashboard.conftest import Browser

UNKNOWN_KEY = "dt_" + "c0ffee" * 4
WRONG_TOKEN = "wrong-token-5e1f-of-32-characters"
EXPECTED_SECRETS = {"admin-token", "bridge-token", "dashboard-token"}
"""The only files that hold a secret: each one's own."""


def hostile_requests(key: str) -> list[bytes]:
    """Return requests with the key in every place that a server might repeat or log."""
    k = key.encode()
    return [
        request(key=key, body=BODY, origin="https://shop.example"),
        request(key=key, body=BODY, origin=f"https://{key}.example"),
        request(key=key, body=BODY, target=f"/ingest/logs?api_key={key}"),
        request(method="GET", target=f"/{key}"),
        request(method="GET", target=f"/ingest/logs?key={key}"),
        request(method=key.replace("_", "-"), target="/ingest/logs", key=key),
        request(f"{key}: x", key=key, body=BODY),
        request(f"X-{key}: {key}", key=key, body=BODY),
        request(f"Authorization: Bearer {key}", key=key, body=BODY),
        request("Content-Encoding: " + key, key=key, body=BODY),
        request("Content-Encoding: gzip", key=key, body=k),
        request("Content-Encoding: gzip", key=key, body=gzip.compress(k)),
        request("Expect: " + key, key=key, body=BODY),
        request("Content-Length: " + key, key=key),
        request("Content-Length: -1", key=key),
        request("Transfer-Encoding: " + key, key=key),
        request("Transfer-Encoding: chunked", key=key) + k + b"\r\n" + k,
        request("Content-Length: 5", "Transfer-Encoding: chunked", key=key) + k,
        request(f"X: {'a' * 9000}{key}", key=key, body=BODY),
        request(*[f"X-{i}: {key}" for i in range(200)], key=key, body=BODY),
        request(key=key, body=k),
        request(key=key, body=b'{"' + k + b'": "' + k + b'"}'),
        request(key=key, body=b'{"logs": [{"level": "' + k + b'", "message": "x"}]}'),
        request(key=key, body=b'{"logs": [{"level": "info", "message": "x", "timestamp": "' + k + b'"}]}'),
        request(key=key, body=b'{"logs": [{"level": "info", "message": 1, "metadata": ["' + k + b'"]}]}'),
        request(key=key, body=b'{"logs": [{"level": "\\ud800' + k + b'", "message": "x"}]}'),
        request(key=key, body=b"\xff" + k),
        request(key=key, body=b"[" * 100_000 + k),
        request(key=f"{key}{key}", body=BODY),
        request(key=f"{key}\xff", body=BODY),
        request(f"Authorization: {key}", body=BODY),
        request(f"Authorization: Basic {key}", body=BODY),
        request(f"Authorization : Bearer {key}", body=BODY),
        request(f" Authorization: Bearer {key}", body=BODY),
        request(f"Authorization: Bearer {key}\r\n {key}", body=BODY),
        request(f"Authorization: Bearer {key}\x00", body=BODY),
        request(f"Authorization: Bearer\r{key}", body=BODY),
        k + b"\r\n\r\n",
        k + b" /ingest/logs HTTP/1.1\r\n\r\n",
        b"POST /ingest/logs " + k + b"\r\n\r\n",
        b"POST /ingest/logs HTTP/9.9\r\nAuthorization: Bearer " + k + b"\r\n\r\n",
        b"POST " + k + b":80 HTTP/1.1\r\n\r\n",
        b"CONNECT " + k + b" HTTP/1.1\r\nHost: " + k + b"\r\n\r\n",
        b"POST http://" + k + b"@[" + k + b"/ingest/logs HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01" + k + b"\r\n\r\n",
        b"Bearer " + k + b"\n" * 50,
    ]


async def send_all(service: Service, key: str) -> None:
    """Send each request on its own connection; it has an answer, which must not repeat the key either."""

    async def send(sent: bytes) -> None:
        answer = await exchange(service.address, sent)
        assert answer.status < 500
        assert key not in str(answer), sent

    await asyncio.gather(*(send(sent) for sent in hostile_requests(key)))


async def call_all(address: str, key: str, token: str) -> None:
    """Call the key service with the key and the token in every place."""
    async with grpc.aio.insecure_channel(address) as channel:
        keys, projects = pb_grpc.KeyServiceStub(channel), project_pb2_grpc.ProjectServiceStub(channel)
        for authorization in (f"Bearer {token}", token, f"Basic {token}", f"Bearer {token} {token}", f"Bearer {key}"):
            metadata = (("authorization", authorization), ("x-authsvc-caller", "canary"), ("x-token", token))
            calls: list[tuple[Any, Message]] = [
                (keys.Validate, pb.ValidateRequest(api_key=key, origin=f"https://{key}/")),
                (keys.Validate, pb.ValidateRequest(api_key=key + key)),
                (keys.Issue, pb.IssueRequest(project_id=key, origins=[key])),
                (keys.Issue, pb.IssueRequest(project_id="p", origins=[f"https://{key}@/"])),
                (keys.Revoke, pb.RevokeRequest(project_id="demo", key_id=key)),
                (keys.SetOrigins, pb.SetOriginsRequest(project_id="demo", origins=[f"{key}@x"])),
                (projects.GetProject, project_pb2.GetProjectRequest(project_id=key)),
                (projects.ListKeys, project_pb2.ListKeysRequest(project_id="demo", page_token=key)),
            ]
            for call, message in calls:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(message, metadata=metadata, timeout=10)


def written(directory: Path) -> dict[Path, bytes]:
    """Return every file there is; SQLite's own and what they were before a checkpoint included."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def check_secret_nowhere(secrets: list[str], system: System) -> None:
    """Fail if one of them is in a file under the system's directory that is not meant to hold it."""
    files = written(system.directory)
    for secret in secrets:
        found = {path.name for path, content in files.items() if secret.encode() in content}
        assert found <= EXPECTED_SECRETS, secret


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_services_write_no_api_key_and_no_token(system: System, log_format: str) -> None:
    for prefix in ("AUTHSVC", "HTTPBRIDGE"):
        system.variables |= {f"{prefix}_LOG_LEVEL": "debug", f"{prefix}_LOG_FORMAT": log_format}
    key_service = await system.key_service()
    bridge = await system.bridge(HTTPBRIDGE_CACHE_TTL_SECONDS="0")
    old = system.issue("demo")
    key = system.run("authsvc", "revoke", "demo", "--yes").stdout.strip()
    admin, token = ((system.state_dir / f"{role}-token").read_text().strip() for role in ("admin", "bridge"))

    assert (await post(bridge.address, key)).status == 200
    for sent_key in (key, old, UNKNOWN_KEY):
        await send_all(bridge, sent_key)
        async with Connection(bridge.address) as connection:
            connection.send(request(key=sent_key, body=BODY)[:-5])
            connection.finish()
            assert await connection.is_closed_by_server()
        await call_all(key_service.address, sent_key, token)
    await call_all(key_service.address, key, WRONG_TOKEN)
    await call_all(key_service.address, key, admin)

    other = f"sqlite:///{system.state_dir / 'other.db'}"
    # The log store takes no writes; the key service refuses the token, and then is gone.
    with closing(sqlite3.connect(system.state_dir / "logs.db", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        unstored = asyncio.create_task(post(bridge.address, key))
        refused = system.launch("httpbridge", HTTPBRIDGE_KEY_SERVICE_TOKEN=WRONG_TOKEN, HTTPBRIDGE_LOG_STORE_URL=other)
        await refused.started()
        assert (await post(refused.address, key)).status == 503
        assert (await unstored).status == 503
        lock.execute("ROLLBACK")
    await key_service.stop()
    assert (await post(bridge.address, key)).status == 503
    assert (await get(bridge.address, "/ready")).status == 503
    await bridge.stop()

    for service, least in ((key_service, 20), (bridge, 60)):  # a bridge asks about several keys in one call
        assert service.stderr.count("milliseconds") > least, "it logs each request at DEBUG"
    assert (system.state_dir / "logs.db").exists()
    secrets = [old, key, UNKNOWN_KEY, WRONG_TOKEN, admin, token]
    check_secret_nowhere(secrets, system)
    for line in bridge.stderr.splitlines() if log_format == "json" else []:
        assert isinstance(json.loads(line), dict)


class Visitor:
    """Opens pages of the dashboard, and keeps what they answer: all of it, headers too."""

    def __init__(self, browser: Browser, project_id: str) -> None:
        self._browser = browser
        self._project = f"/projects/{project_id}"
        self.answers: list[str] = []

    async def get(self, path: str, **headers: str) -> DashboardAnswer:
        return self._kept(await self._browser.get(path, **headers))

    async def post(self, path: str, **fields: Any) -> DashboardAnswer:
        """Send a form as the page itself would."""
        csrf_token = (await self.get("/projects/new")).csrf_token
        return self._kept(await self._browser.post(path, **{"csrf_token": csrf_token} | fields))

    async def open_everything(self) -> None:
        """Open every page there is, and the stream of live tail until it has sent what is stored."""
        for path in (
            "/", "/projects", "/projects/new", "/audit", "/nowhere", "/sign-in", "/static/dashboard.js", self._project,
            *(self._project + page for page in (
                "/logs", "/logs?range=all&text=hello", "/logs/1", "/settings", "/settings/keys", "/settings/origins",
                "/settings/keys/revoke?key=x", "/audit",
            )),
        ):  # fmt: skip
            await self.get(path)
        self.answers.append(await self._browser.beginning(self._project + "/logs/stream?after=0", '"html"'))

    async def say_everywhere(self, secret: str) -> None:
        """Put a text into each place that a page might repeat, log or keep; what answers is the sayer's own."""
        quoted = quote(secret)
        for path in (
            f"/projects?q={quoted}", f"/projects?page={quoted}", f"/{quoted}", f"/projects/{quoted}/logs",
            f"/audit?before={quoted}", f"/sign-in?next=/{quoted}", f"/sign-in/link?t={quoted}",
            f"{self._project}/settings/keys/revoke?key={quoted}",
            *(f"{self._project}/logs?{name}={quoted}" for name in (
                "text", "service", "environment", "level", "since", "until", "range", "before",
            )),
        ):  # fmt: skip
            assert (await self._browser.get(path, **{"X-Forwarded-Proto": secret})).status < 500
        origins = self._project + "/settings/origins"
        for path, fields in (
            ("/projects/new", {"project_id": secret}),
            (origins, {"action": "review", "entry": secret}),
            (origins, {"action": "try", "entry": "a.example", "tried": f"https://{secret}"}),
            (origins, {"action": secret, "base": secret, "reviewed": secret}),
            (f"{self._project}/settings/keys/revoke", {"key_id": secret}),
            ("/projects/new", {"csrf_token": secret, "project_id": "x"}),
            ("/sign-in", {"name": "Eve", "token": secret, "next": secret}),
            ("/sign-in/link", {"link": secret}),
        ):
            csrf_token = (await self._browser.get("/projects/new")).csrf_token
            assert (await self._browser.post(path, **{"csrf_token": csrf_token} | fields)).status < 500

    def _kept(self, answer: DashboardAnswer) -> DashboardAnswer:
        self.answers.append(f"{answer.status}\n{answer.headers}\n{answer.text}")
        return answer


async def test_the_dashboard_shows_a_api_key_in_one_answer_and_writes_it_nowhere(system: System) -> None:
    """Nor any token; with logs sent by the key, with services that are away, and whatever is typed into its forms."""
    system.variables |= {"AUTHSVC_LOG_LEVEL": "debug", "HTTPBRIDGE_LOG_LEVEL": "debug"}
    key_service = await system.key_service()
    bridge = await system.bridge()
    dashboard = await system.dashboard()
    tokens = {role: (system.state_dir / f"{role}-token").read_text().strip() for role in ("admin", "dashboard")}
    async with Browser(f"http://{dashboard.address}") as browser:
        assert (await browser.sign_in("Ann", tokens["dashboard"])).status == 303
        visitor = Visitor(browser, "demo")
        key_page = "/projects/demo/settings/keys"
        keys = [(await visitor.post("/projects/new", project_id="demo")).api_key]
        assert (await post(bridge.address, keys[0])).status == 200
        await visitor.open_everything()
        key_id = (await visitor.get(key_page)).key_id
        keys.append((await visitor.post(f"{key_page}/revoke", key_id=key_id)).api_key)
        assert (await visitor.post(f"{key_page}/revoke", key_id=key_id)).status == 409
        assert (await visitor.get(f"{key_page}/revoke?key={key_id}")).status == 409
        sent = request(key=keys[1], origin="https://shop.example", body=BODY)
        assert (await exchange(bridge.address, sent)).status == 200
        await visitor.open_everything()
        for secret in (*keys, *tokens.values()):
            await visitor.say_everywhere(secret)
            await send_all(dashboard, secret)
        await visitor.open_everything()
        (system.state_dir / "logs.db").rename(system.state_dir / "away.db")
        for path in ("/projects", "/projects/demo/logs", "/projects/demo/settings/origins"):
            await visitor.get(path)
        await key_service.stop()
        for path in ("/projects", key_page):
            assert (await visitor.get(path)).status == 503
        cookies = str(browser.cookies)
    assert len(visitor.answers) > 60
    for secret in (*keys, *tokens.values()):
        assert sum(secret in answer for answer in visitor.answers) == (1 if secret in keys else 0)
        assert secret not in cookies
    await dashboard.stop()
    await bridge.stop()
    check_secret_nowhere([*keys, *tokens.values()], system)


async def test_commands_print_no_secret_but_the_api_key_they_are_asked_for(system: System) -> None:
    system.variables |= {"AUTHSVC_LOG_LEVEL": "debug", "HTTPBRIDGE_LOG_LEVEL": "debug"}
    key_service = await system.key_service()
    issued = system.run("authsvc", "issue", "demo")
    revoked = system.run("authsvc", "revoke", "demo", "--yes")
    old, key = issued.stdout.strip(), revoked.stdout.strip()
    admin, token = ((system.state_dir / f"{role}-token").read_text().strip() for role in ("admin", "bridge"))
    password_url = f"postgresql://u:{WRONG_TOKEN}@127.0.0.1:1/y"

    async def run(*command: str, stdin: str = "", **variables: str) -> str:
        done = await asyncio.to_thread(system.run, *command, stdin=stdin, **variables)
        return done.stdout + done.stderr

    printed = await asyncio.gather(
        run("authsvc", "validate", stdin=key),
        run("authsvc", "validate", stdin=f"{old} {key}"),
        run("authsvc", "validate", "--json", AUTHSVC_API_KEY=key),
        run("authsvc", "keys", "demo", "--json"),
        run("authsvc", "keys", "demo", AUTHSVC_ADMIN_TOKEN=WRONG_TOKEN),
        run("authsvc", "keys", "demo", AUTHSVC_ADMIN_TOKEN=f"with spaces {WRONG_TOKEN}"),
        run("authsvc", "serve", AUTHSVC_ADMIN_TOKEN=WRONG_TOKEN, AUTHSVC_BRIDGE_TOKEN=WRONG_TOKEN),
        run("authsvc", "serve", AUTHSVC_ADMIN_TOKEN=f"with spaces {WRONG_TOKEN}"),
        run("authsvc", "serve", AUTHSVC_DATABASE_URL=f"nonsense://u:{WRONG_TOKEN}@x/y"),
        run("authsvc", "serve", AUTHSVC_DATABASE_URL=f"postgresql://u:{WRONG_TOKEN}@[/y"),
        run("authsvc", "serve", AUTHSVC_DATABASE_URL=password_url),
        run("httpbridge", "serve", HTTPBRIDGE_LOG_STORE_URL=f"postgresql://u:{WRONG_TOKEN}@[/y"),
        run("httpbridge", "logs", "demo", HTTPBRIDGE_LOG_STORE_URL=password_url),
    )
    await key_service.kill()
    text = "\n".join([issued.stderr, revoked.stderr, *printed, await run("authsvc", "validate", stdin=key)])
    assert "Traceback" not in text
    secrets = [old, key, WRONG_TOKEN, admin, token]
    assert [secret for secret in secrets if secret in text] == []
    check_secret_nowhere(secrets, system)

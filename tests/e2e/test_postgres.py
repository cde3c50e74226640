"""The whole path with both stores in PostgreSQL."""

import json
import signal

import asyncpg
from sqlalchemy import make_url

from tests.e2e.load import body
from tests.e2e.processes import System
from tests.http_exchange import post
from tests.stored_chunks import SELECT, entries_of


async def test_keys_and_logs_in_postgresql(system: System, postgres_url: str) -> None:
    """A start on an empty database names the command to run; after it everything works as on SQLite."""
    system.variables |= {"AUTHSVC_DATABASE_URL": postgres_url, "HTTPBRIDGE_LOG_STORE_URL": postgres_url}
    refused = system.run("authsvc", "serve")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "run 'authsvc migrate'" in refused.stderr
    assert refused.stderr.count("\n") == 1
    for outcome in ("is now at version", "already"):
        migrated = system.run("authsvc", "migrate")
        assert (migrated.returncode, migrated.stdout) == (0, "")
        assert outcome in migrated.stderr

    key_service = await system.key_service()
    bridge = await system.bridge(HTTPBRIDGE_CACHE_TTL_SECONDS="0")
    old = system.issue("demo")
    assert (await post(bridge.address, old, body("first", 3))).status == 200
    revoked = system.run("authsvc", "revoke", "demo", "--yes")
    assert (await post(bridge.address, old)).status == 401
    assert (await post(bridge.address, revoked.stdout.strip(), body("second", 1))).status == 200

    connection = await asyncpg.connect(postgres_url)
    rows = entries_of(await connection.fetch(SELECT))
    await connection.close()
    assert [row["message"] for row in rows] == ["first/0", "first/1", "first/2", "second/0"]
    assert {row["project_id"] for row in rows} == {"demo"}
    keys = json.loads(system.run("authsvc", "keys", "demo", "--json").stdout)
    assert [rows[-1]["key_id"], rows[0]["key_id"]] == [key["key_id"] for key in keys]
    shown = system.run("httpbridge", "logs", "demo", "--json").stdout.splitlines()
    assert [json.loads(line)["message"] for line in shown] == [row["message"] for row in rows]
    assert not (system.state_dir / "authsvc.db").exists()
    assert not (system.state_dir / "logs.db").exists()
    await bridge.stop(signal.SIGINT)
    await key_service.stop(signal.SIGINT)


def test_a_database_out_of_reach_is_3_and_one_line_without_its_password(system: System, postgres_url: str) -> None:
    url = make_url(postgres_url).set(password="canary-password", query={"host": str(system.directory)})
    for command in ("serve", "migrate"):
        refused = system.run("authsvc", command, AUTHSVC_DATABASE_URL=url.render_as_string(hide_password=False))
        assert (refused.returncode, refused.stdout) == (3, "")
        assert refused.stderr.count("\n") == 1
        assert "No such file or directory" in refused.stderr, "why"
        assert "canary-password" not in refused.stderr

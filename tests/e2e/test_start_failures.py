"""The ways in which a start can fail, as real processes: one line that says what is wrong, and its exit status.

The table of docs/operations.md. 2 is a configuration that cannot work, 3 a database that cannot be reached now.
"""

import asyncio
import re
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import trustme
from cryptography.hazmat.primitives import serialization as pem

from httpbridge.log_store.schema import log_store, tables
from tests.authsvc.storage.test_database import demand_passwords
from tests.e2e.processes import BIN, System, free_port
from tests.postgres import PostgresServer
from tests.waiting import DEADLINE_SECONDS, until

SECRET = "canary-password"
KEYS, LOGS = "AUTHSVC_DATABASE_URL", "HTTPBRIDGE_LOG_STORE_URL"
KEY_COMMANDS = ["authsvc serve", "authsvc migrate", "authsvc renew-epoch --yes"]
BRIDGE_COMMANDS = ["httpbridge serve", "httpbridge dashboard", "httpbridge logs demo"]


def check(done: subprocess.CompletedProcess[str], status: int, message: str) -> None:
    """Fail unless that is all it said, and its status."""
    name = Path(str(done.args[0])).name
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"{name}: ")
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


def make_files(directory: Path) -> None:
    """Put there what is not what it should be, and certificates."""
    (directory / "file").write_text("text")
    (directory / "directory").mkdir()
    (directory / "garbage.db").write_bytes(b"this is no database" * 100)
    for token in ("admin-token", "dashboard-token"):
        (directory / f"state-{token}").mkdir(mode=0o700)
        (directory / f"state-{token}" / token).touch(mode=0o600)
    with closing(sqlite3.connect(directory / "newer-keys.db")) as keys, keys:
        keys.executescript("CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES (9999)")
    for name, version in (("newer", 99), ("rows", 2)):
        logs = sa.create_engine(f"sqlite:///{directory / f'{name}-logs.db'}")
        tables.create_all(logs)
        with logs.begin() as connection:
            connection.execute(log_store.insert().values(id=1, schema_version=version, probes=0))
        logs.dispose()
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("one", "other"):
        certificate = ca.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
        certificate.private_key_pem.write_to_path(directory / f"{name}.key")
    key = pem.load_pem_private_key((directory / "one.key").read_bytes(), None)
    for name, form in (("encrypted", pem.PrivateFormat.PKCS8), ("old", pem.PrivateFormat.TraditionalOpenSSL)):
        encrypted = key.private_bytes(pem.Encoding.PEM, form, pem.BestAvailableEncryption(b"x"))
        (directory / f"{name}.key").write_bytes(encrypted)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    make_files(directory)
    for path in directory.iterdir():
        path.chmod(0o700 if path.is_dir() else 0o600)  # a key that all can read would be warned of
    return directory


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    """Hold an address on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


TLS = "not a certificate and its unencrypted key in PEM form"
AWAY = f"postgresql://ann:{SECRET}@127.0.0.1:1/x"
CASES = [
    # The address of a database.
    *((command, {KEYS: f"postgresql://ann:{SECRET}@db/keys?ssl=1"}, 2, f"^.*{KEYS}: no such parameter .*: ssl$")
      for command in KEY_COMMANDS),
    *((command, {LOGS: f"postgresql://ann:{SECRET}@db:port/logs"}, 2, f"^.*{LOGS}: a port must be a number")
      for command in BRIDGE_COMMANDS),
    ("authsvc migrate", {KEYS: f"mysql://ann:{SECRET}@db/keys"}, 2, f"{KEYS}: not a database URL"),
    ("authsvc migrate", {KEYS: "postgresql:///keys?target_session_attrs=standby"}, 2, "target_session_attrs"),
    ("authsvc migrate", {KEYS: f"{AWAY}?sslmode=verify-full&sslrootcert={{}}/file"}, 2, f"{KEYS}: sslrootcert: "),
    ("httpbridge serve", {LOGS: f"{AWAY}?sslmode=require&sslcert={{}}/none"}, 2, f"{LOGS}: sslcert: No such file"),
    ("httpbridge logs demo", {LOGS: f"{AWAY}?passfile={{}}/none".replace(f":{SECRET}", "")}, 2, f"{LOGS}: passfile: "),
    # A database that is not there now.
    *((command, {KEYS: AWAY}, 3, "Connection refused$") for command in KEY_COMMANDS),
    ("httpbridge logs demo", {LOGS: AWAY}, 3, "Connection refused"),
    ("authsvc migrate", {KEYS: f"postgresql://ann:{SECRET}@no-such-host.invalid/x"}, 3, "cannot answer now: "),
    # A file of SQLite that is something else.
    *(("authsvc migrate", {KEYS: f"sqlite:///{{}}/{name}"}, 2, f"{KEYS}: .*/{name}: ")
      for name in ("directory", "file/x.db", "garbage.db", "none/x.db")),
    *(("httpbridge serve", {LOGS: f"sqlite:///{{}}/{name}"}, 2, f"{LOGS}: .*/{name}: ")
      for name in ("directory", "file/x.db", "garbage.db", "none/x.db")),
    *(("httpbridge logs demo", {LOGS: f"sqlite:///{{}}/{name}"}, 2, f"{LOGS}: ")
      for name in ("directory", "garbage.db", "none.db", "newer-logs.db")),
    ("authsvc serve", {KEYS: "sqlite:///{}/garbage.db"}, 2, f"{KEYS}: .*/garbage.db: file is not a database"),
    *((command, {KEYS: "sqlite:///{}/newer-keys.db"}, 2, "made by a newer authsvc") for command in KEY_COMMANDS),
    ("httpbridge serve", {LOGS: "sqlite:///{}/newer-logs.db"}, 2, "made by a newer httpbridge"),
    *((command, {LOGS: "sqlite:///{}/rows-logs.db"}, 2, "schema version 2, .*`httpbridge logs .* `httpbridge import`")
      for command in ("httpbridge serve", "httpbridge logs demo")),
    # The state directory and the tokens in it.
    *((command, {f"{command.split()[0].upper()}_STATE_DIR": "{}/file"}, 2, "_STATE_DIR: .*/file: ") for command in
      ("authsvc serve", "authsvc migrate", "httpbridge serve", "httpbridge dashboard", "httpbridge sign-in-link")),
    ("authsvc serve", {"AUTHSVC_STATE_DIR": "/proc/a\nb"}, 2, "AUTHSVC_STATE_DIR: /proc/a\N{REPLACEMENT CHARACTER}b: "),
    ("authsvc serve", {"AUTHSVC_STATE_DIR": "{}/state-admin-token"}, 2, "/admin-token: expected a token"),
    ("httpbridge dashboard", {"HTTPBRIDGE_STATE_DIR": "{}/state-dashboard-token"}, 2, "/dashboard-token: expected"),
    # Where to listen.
    *((f"{name} {command}", {variable: address}, 2, f"{variable}: cannot listen on ") for name, command, variable in
      (("authsvc", "serve", "AUTHSVC_LISTEN"), ("httpbridge", "serve", "HTTPBRIDGE_LISTEN"),
       ("httpbridge", "dashboard", "HTTPBRIDGE_DASHBOARD_LISTEN")) for address in ("TAKEN", "192.0.2.1:0")),
    ("authsvc serve", {"AUTHSVC_LISTEN": "no-such-host.invalid:0"}, 2, "AUTHSVC_LISTEN: cannot listen on "),
    # Certificates and keys.
    *((f"{name.lower()} serve", {f"{name}_TLS_CERT": f"{{}}/{cert}", f"{name}_TLS_KEY": f"{{}}/{key}"}, 2, message)
      for name in ("AUTHSVC", "HTTPBRIDGE") for cert, key, message in [
        ("none.pem", "one.key", "_TLS_CERT: .*No such file"), ("one.pem", "directory", "_TLS_KEY: .*Is a directory"),
        ("one.pem", "other.key", TLS), ("one.pem", "encrypted.key", TLS), ("one.pem", "old.key", TLS),
        ("file", "one.key", TLS), ("one.pem", "file", TLS),
    ]),
    ("httpbridge dashboard", {"HTTPBRIDGE_TLS_CERT": "{}/one.pem", "HTTPBRIDGE_TLS_KEY": "{}/encrypted.key"}, 2, TLS),
    ("authsvc serve", {"AUTHSVC_TLS_CERT": "{}/one.pem", "AUTHSVC_TLS_KEY": "{}/one.key",
                       "AUTHSVC_TLS_CLIENT_CA": "{}/file"}, 2, "AUTHSVC_TLS_CLIENT_CA: "),
    ("httpbridge serve", {"HTTPBRIDGE_KEY_SERVICE_CA": "{}/file"}, 2, "HTTPBRIDGE_KEY_SERVICE_CA: "),
    ("authsvc projects", {"AUTHSVC_CA": "{}/file", "AUTHSVC_ADMIN_TOKEN": "a" * 32, "AUTHSVC_ADDRESS": "127.0.0.1:1"},
     2, "AUTHSVC_CA: "),
    # Several workers.
    ("authsvc serve", {"AUTHSVC_WORKERS": "2", "AUTHSVC_STATE_DIR": "{}/file"}, 2, "AUTHSVC_STATE_DIR: "),
    ("authsvc serve", {"AUTHSVC_WORKERS": "2", "AUTHSVC_LISTEN": "TAKEN"}, 2, "AUTHSVC_LISTEN: "),
    ("authsvc serve", {"AUTHSVC_WORKERS": "2", KEYS: AWAY}, 3, "Connection refused"),
    ("httpbridge serve", {"HTTPBRIDGE_WORKERS": "2", LOGS: "sqlite:///{}/garbage.db"}, 2, f"{LOGS}: "),
    ("httpbridge serve", {"HTTPBRIDGE_WORKERS": "2", LOGS: f"{AWAY}?ssl=1"}, 2, f"{LOGS}: "),
    ("httpbridge serve", {"HTTPBRIDGE_WORKERS": "2", "HTTPBRIDGE_KEY_SERVICE_CA": "{}/file"}, 2, "_KEY_SERVICE_CA: "),
    ("httpbridge serve", {"HTTPBRIDGE_WORKERS": "2", "TMPDIR": "{}/LONG"}, 2, "TMPDIR: "),
]  # fmt: skip


@pytest.mark.parametrize(("command", "variables", "status", "message"), CASES)
def test_what_is_wrong_is_one_line(
    system: System, files: Path, taken: str, command: str, variables: dict[str, str], status: int, message: str
) -> None:
    """`{}` stands for the directory of files, and TAKEN for an address that somebody listens on."""
    filled = {
        name: value.replace("{}", str(files)).replace("TAKEN", taken).replace("LONG", "x" * 100)
        for name, value in ({"AUTHSVC_ALLOW_INSECURE": "true", "HTTPBRIDGE_ALLOW_INSECURE": "true"} | variables).items()
    }
    if "TMPDIR" in filled:
        Path(filled["TMPDIR"]).mkdir(exist_ok=True)
    check(system.run(*command.split(), **filled), status, message)


@pytest.fixture
def role_url(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """Name a database as a role that may connect to it, and nothing else."""
    postgres_server.sql("CREATE ROLE guest LOGIN")
    yield postgres_url.replace("//postgres@", "//guest@")
    postgres_server.sql("DROP ROLE guest")


@pytest.mark.parametrize("command", [*KEY_COMMANDS, "httpbridge serve", "httpbridge logs demo"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [(("/test_", "/missing_"), "does not exist"), (("//postgres@", "//nobody@"), 'role "nobody" does not exist')],
)
def test_a_database_or_a_role_that_does_not_exist(
    system: System, postgres_url: str, command: str, wrong: tuple[str, str], message: str
) -> None:
    url = postgres_url.replace(*wrong)
    check(system.run(*command.split(), **{KEYS: url, LOGS: url}), 2, f"({KEYS}|{LOGS}): .*{message}")


@pytest.mark.parametrize("command", ["authsvc migrate", "httpbridge serve"])
def test_a_role_without_rights(system: System, role_url: str, command: str) -> None:
    check(system.run(*command.split(), **{KEYS: role_url, LOGS: role_url}), 2, "permission denied for schema public")


@pytest.mark.parametrize("command", ["authsvc migrate", "httpbridge serve", "httpbridge logs demo"])
def test_a_wrong_password(system: System, private_postgres: PostgresServer, command: str) -> None:
    private_postgres.sql("ALTER ROLE postgres PASSWORD 'right'")
    demand_passwords(private_postgres)
    private_postgres.sql("SELECT pg_reload_conf()")
    url = private_postgres.url("postgres").replace("postgres@", f"postgres:{SECRET}@")
    done = system.run(*command.split(), **{KEYS: url, LOGS: url})
    check(done, 2, 'password authentication failed for user "postgres"')


@pytest.mark.parametrize("command", ["authsvc migrate", "authsvc serve", "httpbridge serve"])
def test_an_encoding_that_cannot_hold_what_clients_send(
    system: System, postgres_server: PostgresServer, command: str
) -> None:
    """Found out at the start, not by the first entry that has such a character."""
    postgres_server.sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        url = postgres_server.url("latin")
        done = system.run(*command.split(), **{KEYS: url, LOGS: url})
        variable = KEYS if command.startswith("authsvc") else LOGS
        check(
            done, 2, f"{variable}: the database could not hold every text: server_encoding is LATIN1, and must be UTF8"
        )
    finally:
        postgres_server.sql("DROP DATABASE latin WITH (FORCE)")


@pytest.mark.parametrize("command", ["authsvc serve", "authsvc renew-epoch --yes"])
def test_a_schema_that_is_older(system: System, postgres_url: str, command: str) -> None:
    """On PostgreSQL nobody's rolling update is broken by the first of the new replicas."""
    check(system.run(*command.split(), **{KEYS: postgres_url}), 2, "is at version none, .*: run 'authsvc migrate'")


def limited(system: System, limits: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run it as after these commands of a shell."""
    name, *arguments = command.split()
    return subprocess.run(
        ["sh", "-c", f'{limits}; exec "$0" "$@"', BIN / name, *arguments],
        env=system.environment(PYTHONDONTWRITEBYTECODE="1"),
        cwd=system.directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


@pytest.mark.parametrize("command", ["authsvc serve", "httpbridge serve"])
def test_too_few_open_files(system: System, command: str) -> None:
    done = limited(system, "ulimit -n 64", command)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"\w+: the system allows 64 open files, and \d+ are needed at least: .*ulimit.*\n", done.stderr)


@pytest.mark.parametrize(
    ("blocks", "status", "message"),
    [
        (0, 2, "authsvc: .*/admin-token: File too large"),
        (2, 3, "authsvc: the database cannot answer now: "),
        (8, 3, "authsvc: the database cannot answer now: "),
    ],
)
def test_a_disk_without_room(system: System, blocks: int, status: int, message: str) -> None:
    """As far as a limit of what a file may have, in blocks of 512 bytes, stands in for it.

    What the service itself could not write is no file that somebody overwrote.
    """
    done = limited(system, f"ulimit -f {blocks}", "authsvc serve")
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(f"{message}.*\n", done.stderr)


@pytest.mark.parametrize("stream", [">&-", ">/dev/full"])
@pytest.mark.parametrize(
    ("command", "variable", "workers"),
    [
        ("authsvc serve", "AUTHSVC_LISTEN", "1"),
        ("httpbridge serve", "HTTPBRIDGE_LISTEN", "2"),
        ("httpbridge dashboard", "HTTPBRIDGE_DASHBOARD_LISTEN", "1"),
    ],
)
def test_a_service_serves_where_nobody_reads_that_it_listens(
    system: System, command: str, variable: str, workers: str, stream: str
) -> None:
    port = free_port()
    name, argument = command.split()
    stderr = system.directory / "stderr"
    with stderr.open("wb") as said:
        service = subprocess.Popen(
            ["sh", "-c", f'exec "$0" "$@" {stream}', BIN / name, argument],
            env=system.environment(**{variable: f"127.0.0.1:{port}", "HTTPBRIDGE_WORKERS": workers}),
            cwd=system.directory,
            stderr=said,
        )
    try:
        asyncio.run(until("it listens", lambda: listens(port)))
        if workers != "1":  # the parent of workers says so after all of them
            asyncio.run(until("all have started", lambda: "worker=2" in stderr.read_text()))
        service.send_signal(signal.SIGTERM)
        assert service.wait(DEADLINE_SECONDS) == 0
    finally:
        service.kill()
        service.wait()
    assert "Traceback" not in stderr.read_text()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_failure_that_nobody_reads_has_its_status(system: System) -> None:
    done = limited(system, "exec 2>/dev/full; export AUTHSVC_STATE_DIR=/dev/null/state", "authsvc serve")
    assert (done.returncode, done.stdout) == (2, "")

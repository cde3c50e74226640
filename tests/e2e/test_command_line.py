"""The commands as real processes: what they print where, and their exit statuses."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from authsvc.config import Config as KeyServiceConfig
from httpbridge.config import Config as BridgeConfig
from tests.e2e.processes import BIN, Service, System, free_port
from tests.http_exchange import post
from tests.waiting import until

RAW_KEY = re.compile(r"dt_[0-9a-f]{24}\n")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run a key service that the tests of this module share; each has projects of its own."""
    system = System(tmp_path_factory.mktemp("commands"))
    try:
        asyncio.run(system.key_service())
        yield system
    finally:
        system.close()


def test_issue_prints_the_api_key_alone_on_standard_output(system: System) -> None:
    done = system.run("authsvc", "issue", "issued")
    assert done.returncode == 0
    assert RAW_KEY.fullmatch(done.stdout)
    assert "project issued" in done.stderr
    assert done.stdout.strip() not in done.stderr


def test_an_active_key_is_not_replaced_by_issue(system: System) -> None:
    system.issue("taken")
    done = system.run("authsvc", "issue", "taken")
    assert (done.returncode, done.stdout) == (1, "")
    assert "ALREADY_EXISTS" in done.stderr
    assert done.stderr.count("\n") == 1


def test_validate_takes_the_key_from_standard_input_or_the_environment(system: System) -> None:
    key = system.issue("asked", "https://shop.example")
    for options, stdin, variables, status, verdict in [
        ([], key, {}, 0, "allowed"),
        (["--origin", "https://shop.example"], "", {"AUTHSVC_API_KEY": key}, 0, "allowed"),
        (["--origin", "https://evil.example"], key + "\n", {}, 1, "origin not allowed"),
    ]:
        done = system.run("authsvc", "validate", *options, stdin=stdin, **variables)
        assert done.returncode == status
        assert re.fullmatch(rf"{verdict} key=key_\w+ project=asked\n", done.stdout)


@pytest.mark.parametrize("key", ["nonsense", "dt_" + "0" * 24, "\udcff"])
def test_validate_says_of_every_bad_key_the_same(system: System, key: str) -> None:
    done = system.run("authsvc", "validate", AUTHSVC_API_KEY=key)
    assert (done.returncode, done.stdout, done.stderr) == (1, "invalid key\n", "")


def test_revoke_asks_about_the_key_that_it_then_revokes(system: System) -> None:
    old = system.issue("rotated")
    (listed,) = json.loads(system.run("authsvc", "keys", "rotated", "--json").stdout)
    refused = system.run("authsvc", "revoke", "rotated", stdin="n\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert listed["key_id"] in refused.stderr
    assert system.run("authsvc", "validate", stdin=old).returncode == 0

    done = system.run("authsvc", "revoke", "rotated", stdin="y\n")
    assert done.returncode == 0
    assert RAW_KEY.fullmatch(done.stdout)
    assert listed["key_id"] in done.stderr
    assert system.run("authsvc", "validate", stdin=old).returncode == 1
    assert system.run("authsvc", "validate", stdin=done.stdout).returncode == 0

    again = system.run("authsvc", "revoke", "rotated", "--key-id", listed["key_id"], "--yes")
    assert (again.returncode, again.stdout) == (0, "")
    assert "revoked already" in again.stderr
    assert system.run("authsvc", "validate", stdin=done.stdout).returncode == 0


def test_revoke_of_another_key_id_is_refused(system: System) -> None:
    key = system.issue("kept")
    done = system.run("authsvc", "revoke", "kept", "--key-id", "key_0000000000000000", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert "NOT_FOUND" in done.stderr
    assert system.run("authsvc", "validate", stdin=key).returncode == 0


def test_origins_are_shown_set_and_emptied(system: System) -> None:
    system.issue("listed")
    shown = system.run("authsvc", "origins", "listed")
    assert (shown.returncode, shown.stdout) == (0, "")
    assert "every origin" in shown.stderr
    changed = system.run(
        "authsvc", "origins", "listed", "https://Shop.example", "*.shop.example", "https://shop.example"
    )
    assert (changed.returncode, changed.stdout) == (0, "https://shop.example\n*.shop.example\n")
    assert json.loads(system.run("authsvc", "origins", "listed", "--json").stdout) == {
        "origins": ["https://shop.example", "*.shop.example"]
    }
    refused = system.run("authsvc", "origins", "listed", "https://shop.example/path")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "https://shop.example/path" in refused.stderr
    suffix = system.run("authsvc", "origins", "listed", "*.vercel.app")
    assert (suffix.returncode, "must be forced" in suffix.stderr) == (1, True)
    forced = system.run("authsvc", "origins", "listed", "--force", "*.vercel.app")
    assert (forced.returncode, forced.stdout) == (0, "*.vercel.app\n")
    app = system.run(
        "authsvc", "issue", "app", "--origin", "capacitor://localhost", "--origin", "*.github.io", "--force"
    )
    assert app.returncode == 0
    system.run("authsvc", "origins", "listed", "https://shop.example/", "*.shop.example")
    assert "nothing was changed" not in changed.stderr
    again = system.run("authsvc", "origins", "listed", "https://shop.example", "*.shop.example")
    assert (again.returncode, again.stdout) == (0, changed.stdout)
    assert again.stderr.startswith("project listed admitted these already; nothing was changed\nin force everywhere")
    assert system.run("authsvc", "origins", "listed", "--any").returncode == 0
    assert json.loads(system.run("authsvc", "origins", "listed", "--json").stdout) == {"origins": []}


def test_json_is_all_there_is_on_standard_output(system: System) -> None:
    issued = json.loads(system.run("authsvc", "issue", "parsed", "--json").stdout)
    assert RAW_KEY.fullmatch(issued["api_key"] + "\n")
    assert issued["origins"] == [], "empty fields are there too"
    verdict = json.loads(system.run("authsvc", "validate", "--json", stdin=issued["api_key"]).stdout)
    assert (verdict["verdict"], verdict["project_id"]) == ("VERDICT_ALLOWED", "parsed")
    revoked = json.loads(system.run("authsvc", "revoke", "parsed", "--yes", "--json").stdout)
    assert revoked["revoked_key"]["key_id"] == issued["key"]["key_id"] == verdict["key_id"]
    assert revoked["already_revoked"] is False
    keys = json.loads(system.run("authsvc", "keys", "parsed", "--json").stdout)
    assert [key["key_id"] for key in keys] == [revoked["key"]["key_id"], issued["key"]["key_id"]]
    assert ["revoke_time" in key for key in keys] == [False, True]
    projects = json.loads(system.run("authsvc", "projects", "--json").stdout)
    assert "parsed" in [project["project_id"] for project in projects]


def test_tables_are_for_people(system: System) -> None:
    system.issue("shown")
    header, *rows = system.run("authsvc", "projects").stdout.splitlines()
    assert header.split() == ["PROJECT", "KEY", "ISSUED", "ORIGINS"]
    assert "shown" in [row.split()[0] for row in rows]
    header, row = system.run("authsvc", "keys", "shown").stdout.splitlines()
    assert header.split() == ["KEY", "ISSUED", "REVOKED"]
    assert row.split()[-1] == "active"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["authsvc", "issue"], 2),
        (["authsvc", "nonsense"], 2),
        (["authsvc", "origins", "x", "a.example", "--any"], 2),
        (["authsvc", "issue", "Not_A_Project"], 1),
        (["authsvc", "keys", "nobody"], 1),
        (["authsvc", "--version"], 0),
        (["httpbridge", "logs"], 2),
        (["httpbridge", "--help"], 0),
    ],
)
def test_exit_statuses(system: System, command: list[str], status: int) -> None:
    done = system.run(*command)
    assert done.returncode == status
    assert bool(done.stdout) == (status == 0)
    assert bool(done.stderr) == (status != 0)


@pytest.mark.parametrize("command", [["issue", "x"], ["validate"], ["revoke", "x", "--yes"]])
def test_a_service_out_of_reach_is_3_and_one_line(system: System, command: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = system.run("authsvc", *command, AUTHSVC_ADDRESS=address)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{address} refuses connections: is the key service running?" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"AUTHSVC_STATE_DIR": "elsewhere"}, ["elsewhere/admin-token", "AUTHSVC_STATE_DIR", "AUTHSVC_ADMIN_TOKEN"]),
        ({"AUTHSVC_ADMIN_TOKEN": "käse"}, ["AUTHSVC_ADMIN_TOKEN"]),
        ({"AUTHSVC_CLIENT_CERT": "a.pem", "AUTHSVC_CLIENT_KEY": "a.key"}, ["AUTHSVC_CLIENT_CERT", "AUTHSVC_CA"]),
        ({"AUTHSVC_ADDRESS": "\udcff:50051"}, ["AUTHSVC_ADDRESS: expected HOST:PORT"]),
        (
            {"AUTHSVC_ADDRESS": "", "AUTHSVC_LISTEN": ":0"},
            ["AUTHSVC_LISTEN=127.0.0.1:0 is no port to connect to", "set AUTHSVC_ADDRESS"],
        ),
        ({"AUTHSVC_ADDRESS": "192.0.2.1:50051"}, ["AUTHSVC_ADDRESS", "AUTHSVC_CA", "AUTHSVC_ALLOW_INSECURE=true"]),
        (
            {"AUTHSVC_ADDRESS": "", "AUTHSVC_LISTEN": "192.0.2.1:50051"},
            ["AUTHSVC_LISTEN", "AUTHSVC_CA", "AUTHSVC_ALLOW_INSECURE=true"],
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_2_and_one_line_that_says_what_to_set(
    system: System, variables: dict[str, str], named: list[str]
) -> None:
    """In particular no token goes in the clear to another machine."""
    done = system.run("authsvc", "projects", **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for name in named:
        assert name in done.stderr


def test_a_refused_token_is_1_and_one_line_that_says_where_it_came_from(system: System) -> None:
    bridge_token = (system.state_dir / "bridge-token").read_text()
    state_dir = system.directory / "wrong"
    state_dir.mkdir()
    (state_dir / "admin-token").touch(mode=0o600)
    (state_dir / "admin-token").write_text(32 * "x")
    for variables, source, status in [
        ({"AUTHSVC_ADMIN_TOKEN": 32 * "x"}, "AUTHSVC_ADMIN_TOKEN", "UNAUTHENTICATED"),
        ({"AUTHSVC_ADMIN_TOKEN": bridge_token}, "AUTHSVC_ADMIN_TOKEN", "PERMISSION_DENIED"),
        ({"AUTHSVC_STATE_DIR": str(state_dir)}, str(state_dir / "admin-token"), "UNAUTHENTICATED"),
    ]:
        done = system.run("authsvc", "projects", **variables)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith(f"({status}); the token that was sent is the one in {source}\n")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["issue", "\udcff"],
        ["issue", "x", "--origin", "\udcff"],
        ["issue", "x", "--wait", "nan"],
        ["revoke", "x", "--key-id", "\udcff"],
        ["origins", "x", "\udcff"],
        ["validate", "--origin", "\udcff"],
        ["keys", "\udcff"],
        ["changes", "--project", "\udcff"],
    ],
)
def test_an_argument_that_cannot_be_sent_is_a_usage_error(system: System, command: list[str]) -> None:
    """The surrogate stands for a byte that is not UTF-8."""
    done = system.run("authsvc", *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: Invalid value for" in done.stderr


@pytest.mark.parametrize("name", ["authsvc", "httpbridge"])
def test_a_taken_port_is_2_and_one_line(system: System, name: str) -> None:
    taken = system.variables["AUTHSVC_ADDRESS"]
    done = system.run(name, "serve", **{f"{name.upper()}_LISTEN": taken})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"{name}: {name.upper()}_LISTEN: cannot listen on {taken}: .*[Aa]ddress.* in use.*\n", done.stderr
    )


def shell(system: System, script: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has the commands of the product in its path."""
    return subprocess.run(
        ["sh", "-c", script],
        env=system.environment(PATH=f"{BIN}:{os.environ['PATH']}", **variables),
        cwd=system.directory,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_api_key_that_cannot_be_printed_is_said_to_be_lost(system: System) -> None:
    """It is in force, and nothing shows it again."""
    for command in ("issue unshown", "revoke unshown --yes", "revoke unshown --yes --json"):
        done = shell(system, f"authsvc {command} > /dev/full")
        newest = json.loads(system.run("authsvc", "keys", "unshown", "--json").stdout)[0]["key_id"]
        assert done.returncode == 1
        assert done.stderr.endswith(
            f"\nauthsvc: standard output: No space left on device: the API key of {newest}, which is in force, "
            "is lost; 'authsvc revoke unshown' replaces it\n"
        )
        assert done.stderr.count("\n") == 3


def test_what_is_said_beside_a_api_key_may_be_lost(system: System) -> None:
    done = shell(system, "authsvc issue unheard 2> /dev/full")
    assert (done.returncode, bool(RAW_KEY.fullmatch(done.stdout))) == (0, True)


def test_a_list_that_cannot_be_printed_is_1_and_one_line(system: System) -> None:
    key = system.issue("unlisted", "https://shop.example")
    for command in ("projects", "projects --json", "keys unlisted", "changes", "changes --json", "origins unlisted"):
        done = shell(system, f"authsvc {command} > /dev/full")
        assert (done.returncode, done.stderr) == (1, "authsvc: standard output: No space left on device\n"), command
    done = shell(system, "authsvc validate > /dev/full", stdin=key)
    assert (done.returncode, done.stderr) == (1, "authsvc: standard output: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_no_exit_status(system: System, closed: str) -> None:
    """What is opened next must not become one of them: libuv aborts on that."""
    for command, status in (
        ("authsvc projects", 0),
        ("authsvc validate", 1),
        ("authsvc keys nobody", 1),
        ("authsvc issue Not_A_Project", 1),
        ("httpbridge logs nobody", 2),
    ):
        done = shell(system, f"{command} {closed}", HTTPBRIDGE_STATE_DIR="nowhere")
        assert done.returncode == status, command
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["dt_" + "0" * 24 + " " * 10_000, "dt_" + "0" * 24 + "\0" * 1_000_000])
def test_a_line_that_is_far_longer_than_a_key_is_none(system: System, key: str) -> None:
    """It may never end."""
    done = system.run("authsvc", "validate", stdin=key)
    assert (done.returncode, done.stdout, done.stderr) == (1, "invalid key\n", "")
    endless = shell(system, "authsvc validate < /dev/zero")
    assert (endless.returncode, endless.stdout, endless.stderr) == (1, "invalid key\n", "")


def test_the_list_of_commands_is_whole_sentences(system: System) -> None:
    listed = system.run("authsvc", "--help").stdout.partition("Commands:\n")[2].splitlines()
    assert len(listed) == 12
    assert [line for line in listed if not line.endswith(".") or "..." in line] == []


@pytest.mark.parametrize("name", ["Jörg Ärmel", "two words"])
def test_the_audit_trail_has_the_users_name_as_it_is(system: System, name: str) -> None:
    project = f"by-{len(name)}"
    assert system.run("authsvc", "issue", project, LOGNAME=name).returncode == 0
    shown = system.run("authsvc", "changes", "--project", project).stdout
    assert re.fullmatch(rf" *\d+  .*Z  issue +{project}  key_[0-9a-f]{{16}}  by {name}\n", shown)


def test_of_two_revokes_at_once_the_one_that_comes_late_changes_nothing(system: System) -> None:
    """It revokes the key that it read and asked about, never the other's new one."""
    system.issue("raced")
    late = subprocess.Popen(
        [BIN / "authsvc", "revoke", "raced"],
        env=system.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert late.stderr is not None
    asked = ""
    while not asked.endswith("[y/N]: "):  # it has read the key
        asked += late.stderr.read(1)
    first = system.run("authsvc", "revoke", "raced", "--yes").stdout
    printed, said = late.communicate("y\n", timeout=60)
    assert (late.returncode, printed) == (0, "")
    assert "was revoked already" in said
    assert "; if its next key was not shown to you, 'authsvc revoke raced' replaces it\n" in said
    assert system.run("authsvc", "validate", stdin=first).returncode == 0


def test_tokens_and_state_are_for_their_owner_only(system: System) -> None:
    assert system.state_dir.stat().st_mode & 0o777 == 0o700
    for name in ("admin-token", "bridge-token"):
        assert (system.state_dir / name).stat().st_mode & 0o777 == 0o600


def test_dev_certs_makes_a_ca_and_certificates_of_a_year_with_private_keys(system: System) -> None:
    directory = system.directory / "some certs"
    done = system.run("authsvc", "dev-certs", "some certs")
    assert done.returncode == 0
    assert (directory / "variables.sh").read_text() == done.stdout
    variables = dict(shlex.split(line.removeprefix("export "))[0].split("=", 1) for line in done.stdout.splitlines())
    fields = {field.name for field in msgspec.structs.fields(KeyServiceConfig)}
    fields_of_bridge = {field.name for field in msgspec.structs.fields(BridgeConfig)}
    for variable, path in variables.items():
        assert Path(path).parent == directory
        prefix, _, name = variable.partition("_")
        assert name.lower() in {"AUTHSVC": fields, "HTTPBRIDGE": fields_of_bridge}[prefix]
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.glob("*.key")} == {
        "server.key": 0o600,
        "client.key": 0o600,
    }
    ca = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    for name in ("server", "client"):
        certificate = x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())
        certificate.verify_directly_issued_by(ca)
        assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=365)


def test_dev_certs_overwrites_nothing(system: System) -> None:
    directory = system.directory / "kept"
    directory.mkdir()
    (directory / "client.key").write_text("precious")
    done = system.run("authsvc", "dev-certs", "kept")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "authsvc: kept/client.key exists: remove it, or name another directory\n"
    assert [(path.name, path.read_text()) for path in directory.iterdir()] == [("client.key", "precious")]


# What is stored, shown: `httpbridge logs`.

LOGS: list[dict[str, Any]] = [
    {"level": "debug", "message": "first", "timestamp": "2026-01-02T03:00:00Z"},
    {"level": "error", "message": "third", "timestamp": "2026-01-02T05:00:00Z", "metadata": {"n": 1.10}},
    {"level": "info", "message": "second \x1b[31m red", "timestamp": "2026-01-02T04:00:00Z"},
]


@pytest.fixture(scope="module")
def bridge(system: System) -> Service:
    """Run a bridge; project `viewed` has the logs."""

    async def start() -> Service:
        bridge = await system.bridge()
        key = system.issue("viewed")
        assert (await post(bridge.address, key, json.dumps({"logs": LOGS}).encode())).status == 200
        return bridge

    return asyncio.run(start())


def shown(system: System, *options: str) -> list[dict[str, Any]]:
    done = system.run("httpbridge", "logs", *options, "--json")
    assert done.returncode == 0
    assert (done.stderr == "") == (done.stdout != ""), "that there is nothing is said to people only"
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_logs_are_shown_newest_last(system: System, bridge: Service) -> None:
    found = shown(system, "viewed")
    assert [(log["level"], log["message"]) for log in found] == [
        ("debug", "first"),
        ("info", "second \x1b[31m red"),
        ("error", "third"),
    ]
    assert found[-1]["metadata"] == {"n": 1.1}
    lines = system.run("httpbridge", "logs", "viewed").stdout.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines), "what clients sent must not act on the terminal"
    assert "third" in lines[-1]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--since", "2026-01-02T04:00:00Z"], 2),
        (["--since", "2026-01-02T06:00:00+02:00"], 2),
        (["--since", "2026-01-02T04:30:00Z"], 1),
        (["--since", "1s"], 0),
        (["--level", "error"], 1),
    ],
)
def test_logs_are_selected_by_time_and_level(system: System, bridge: Service, options: list[str], count: int) -> None:
    assert len(shown(system, "viewed", *options)) == count


def test_the_bridges_address_is_not_the_key_services(system: System, bridge: Service) -> None:
    done = system.run("authsvc", "projects", AUTHSVC_ADDRESS=bridge.address)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"authsvc: the key service is unavailable: {bridge.address} does not speak gRPC: "
        "is it the bridge's address, or another service's?\n"
    )


def test_logs_of_another_project_are_not_shown(system: System, bridge: Service) -> None:
    done = system.run("httpbridge", "logs", "nobody")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no logs of project nobody\n")


def test_logs_of_a_project_that_is_not_utf_8_are_wrong_usage(system: System, bridge: Service) -> None:
    done = system.run("httpbridge", "logs", "\udcff")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not UTF-8" in done.stderr
    assert shown(system, "nobody") == []


@pytest.mark.parametrize("options", [["--since", "yesterday"], ["--level", "loud"]])
def test_a_bad_selection_is_a_usage_error(system: System, bridge: Service, options: list[str]) -> None:
    done = system.run("httpbridge", "logs", "viewed", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert options[1] in done.stderr


async def test_follow_shows_what_comes_in_until_it_is_interrupted(system: System, bridge: Service) -> None:
    key = system.issue("followed")
    follower = system.launch("httpbridge", "logs", "followed", "--follow", "--json")
    for number in range(1, 4):
        body = json.dumps({"logs": [{"level": "info", "message": str(number)}]}).encode()
        assert (await post(bridge.address, key, body)).status == 200
        await until(f"log {number} is shown", lambda number=number: follower.stdout.count("\n") == number)
    follower.send(signal.SIGINT)
    assert await follower.ended() in (0, 128 + signal.SIGINT)
    assert [json.loads(line)["message"] for line in follower.stdout.splitlines()] == ["1", "2", "3"]
    assert follower.stderr == ""


@pytest.fixture(scope="module")
def translated(system: System, bridge: Service) -> str:
    """Return a project with a log that ASCII cannot hold."""
    key = system.issue("translated")
    body = json.dumps({"logs": [{"level": "info", "message": "naïve 🚀", "metadata": {"é": "ж"}}]}).encode()
    assert asyncio.run(post(bridge.address, key, body)).status == 200
    return "translated"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_logs_are_shown_in_the_encoding_of_the_output(system: System, translated: str, encoding: str) -> None:
    """What it cannot hold is escaped; JSON still means the same."""

    def printed(*options: str) -> str:
        done = subprocess.run(
            [BIN / "httpbridge", "logs", translated, *options],
            env=system.environment(PYTHONIOENCODING=encoding),
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode(encoding)

    log = json.loads(printed("--json"))
    assert (log["message"], log["metadata"]) == ("naïve 🚀", {"é": "ж"})
    escapes = {"ascii": r"na\xefve \U0001f680", "latin-1": r"naïve \U0001f680", "utf-8": "naïve 🚀"}
    assert escapes[encoding] in printed()


def run_into(output: int | str, system: System, *arguments: str) -> tuple[int, str]:
    """Run `httpbridge` into what a shell redirects to, or into a file; return its status and its complaints."""
    redirection = f">{output}" if isinstance(output, str) else ""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {redirection}', BIN / "httpbridge", *arguments],
        env=system.environment(),
        stdout=output if isinstance(output, int) else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("options", [[], ["--json"], ["--follow"]])
def test_an_output_that_takes_nothing_is_one_line(system: System, translated: str, options: list[str]) -> None:
    expected = (1, "httpbridge: standard output: No space left on device\n")
    assert run_into("/dev/full", system, "logs", translated, *options) == expected


def test_an_output_that_is_closed_is_no_traceback(system: System, translated: str) -> None:
    _, complaint = run_into("&-", system, "logs", translated)
    assert "Traceback" not in complaint


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_an_output_whose_reader_has_had_enough_is_nothing_to_speak_of(
    system: System, translated: str, options: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_into(writer, system, "logs", translated, *options) == (1, "")
    finally:
        os.close(writer)


def test_logs_without_a_store_say_so(system: System) -> None:
    done = system.run("httpbridge", "logs", "x", HTTPBRIDGE_STATE_DIR=str(system.directory / "nowhere"))
    assert done.returncode in (2, 3)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not (system.directory / "nowhere").exists()

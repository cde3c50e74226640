"""Configurations as operators write them, tried on the real programs: what starts, what stops, where things are."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.certificates import Authority
from tests.e2e.processes import BIN, Service, System, free_port
from tests.e2e.stored_logs import messages
from tests.e2e.workers import workers
from tests.http_exchange import get, post

COMMANDS = [
    ("authsvc", "serve"),
    ("authsvc", "migrate"),
    ("authsvc", "renew-epoch", "--yes"),
    ("authsvc", "issue", "demo"),
    ("authsvc", "projects"),
    ("authsvc", "validate"),
    ("httpbridge", "serve"),
    ("httpbridge", "dashboard"),
    ("httpbridge", "sign-in-link"),
    ("httpbridge", "logs", "demo"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_misspelt_variable_stops_every_command_with_one_line(system: System, command: tuple[str, ...]) -> None:
    done = system.run(*command, AUTHSVC_TLS_CLIENTCA="ca.pem")
    assert (done.returncode, done.stdout) == (2, "")
    reason = "there is no such variable; did you mean AUTHSVC_TLS_CLIENT_CA?"
    assert done.stderr == f"{command[0]}: AUTHSVC_TLS_CLIENTCA: {reason}\n"
    assert not system.state_dir.exists()


@pytest.mark.parametrize("workers_count", ["1", "2"])
async def test_everything_is_in_the_state_directory_whatever_characters_its_name_has(
    system: System, workers_count: str
) -> None:
    """And whatever white space is around it, as a file of variables may have."""
    state = system.directory / "a?b=c&d#e%41:f@g h"
    system.variables |= dict.fromkeys(("AUTHSVC_STATE_DIR", "HTTPBRIDGE_STATE_DIR"), f" {state}\n")
    system.state_dir = state
    await system.key_service(AUTHSVC_WORKERS=workers_count)
    bridge = await system.bridge(HTTPBRIDGE_WORKERS=workers_count)
    key = system.issue("demo")
    assert (await post(bridge.address, key)).status == 200
    assert messages(state) == ["hello"]
    assert "hello" in system.run("httpbridge", "logs", "demo").stdout
    beside = {path.name for path in system.directory.iterdir() if path.suffix not in (".stdout", ".stderr")}
    assert beside == {state.name}
    assert {"authsvc.db", "logs.db", "admin-token", "bridge-token"} <= {path.name for path in state.iterdir()}


async def test_a_state_directory_may_be_named_by_the_home_directory(system: System) -> None:
    system.variables |= {"HOME": str(system.directory), "AUTHSVC_STATE_DIR": "~/state"}
    await system.key_service()
    assert (system.state_dir / "authsvc.db").exists()
    assert system.run("authsvc", "projects").returncode == 0


@pytest.mark.parametrize(("host", "workers_count"), [("", "1"), ("*", "2")])
async def test_an_address_without_a_host_is_every_interface_of_each_family(
    system: System, host: str, workers_count: str
) -> None:
    ports = {name: free_port() for name in ("AUTHSVC_LISTEN", "HTTPBRIDGE_LISTEN", "HTTPBRIDGE_DASHBOARD_LISTEN")}
    keys_port, logs_port, _ = ports.values()
    system.variables |= {variable: f"{host}:{port}" for variable, port in ports.items()}
    system.variables |= {"HTTPBRIDGE_KEY_SERVICE": f":{keys_port}", "HTTPBRIDGE_ALLOW_INSECURE": "true"}
    await system.launch("authsvc", AUTHSVC_WORKERS=workers_count, AUTHSVC_ALLOW_INSECURE="true").started()
    await system.bridge(HTTPBRIDGE_WORKERS=workers_count)
    await system.dashboard(HTTPBRIDGE_DASHBOARD_TOKEN=32 * "x")
    for port in ports.values():
        for address in ("127.0.0.1", *(["::1"] if has_ipv6() else [])):
            socket.create_connection((address, port), timeout=40).close()
    assert system.run("authsvc", "projects").returncode == 0, "the command line finds it by loopback"
    assert (await get(f"127.0.0.1:{logs_port}", "/health")).status == 200
    done = system.run("httpbridge", "sign-in-link", HTTPBRIDGE_DASHBOARD_TOKEN=32 * "x")
    assert (done.returncode, "--url" in done.stderr) == (2, True)


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("workers_count", ["1", "2"])
@pytest.mark.parametrize("command", [("authsvc", "serve"), ("httpbridge", "serve"), ("httpbridge", "dashboard")])
def test_a_state_directory_that_others_can_write_stops_the_start(
    system: System, command: tuple[str, ...], workers_count: str
) -> None:
    system.state_dir.mkdir()
    system.state_dir.chmod(0o777)
    done = system.run(*command, AUTHSVC_WORKERS=workers_count, HTTPBRIDGE_WORKERS=workers_count)
    assert (done.returncode, done.stdout) == (2, "")
    variable = f"{command[0].upper()}_STATE_DIR"
    assert done.stderr.startswith(f"{command[0]}: {variable}: {system.state_dir}: others can write to it (mode 0777)")
    assert done.stderr.count("\n") == 1
    assert list(system.state_dir.iterdir()) == []


async def test_a_generated_token_that_others_can_read_is_taken_by_nobody(system: System) -> None:
    key_service = await system.key_service()
    dashboard = await system.dashboard()
    await dashboard.stop()
    refused = [
        ("admin-token", ("authsvc", "projects")),
        ("bridge-token", ("httpbridge", "serve")),
        ("admin-token", ("httpbridge", "dashboard")),
        ("dashboard-token", ("httpbridge", "dashboard")),
        ("dashboard-token", ("httpbridge", "sign-in-link")),
        ("admin-token", ("authsvc", "serve")),
        ("bridge-token", ("authsvc", "serve")),
    ]
    for name, command in refused:
        path = system.state_dir / name
        path.chmod(0o644)
        done = system.run(*command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), command
        assert f"{path}: others can read it (mode 0644): run 'chmod go-rwx {path}'" in done.stderr
        path.chmod(0o640)
    await key_service.stop()


@pytest.mark.parametrize(("mode", "warnings"), [(0o640, 0), (0o644, 1)])
async def test_a_tls_key_that_everybody_can_read_is_one_warning(
    system: System, tmp_path: Path, mode: int, warnings: int
) -> None:
    """As Docker Compose and Kubernetes mount it, unless told otherwise."""
    certificate, key = Authority(tmp_path, "keys").certificate("127.0.0.1")
    os.chmod(key, mode)  # noqa: PTH101 - nothing else runs yet
    services = [
        await system.key_service(AUTHSVC_TLS_CERT=certificate, AUTHSVC_TLS_KEY=key, AUTHSVC_WORKERS="2"),
        await system.bridge(HTTPBRIDGE_TLS_CERT=certificate, HTTPBRIDGE_TLS_KEY=key, HTTPBRIDGE_WORKERS="2"),
        await system.dashboard(HTTPBRIDGE_TLS_CERT=certificate, HTTPBRIDGE_TLS_KEY=key),
    ]
    for service in services:
        assert service.stderr.count("key_readable_by_all") == warnings
        assert (
            service.stderr.count(
                "variable=AUTHSVC_TLS_KEY" if service is services[0] else "variable=HTTPBRIDGE_TLS_KEY"
            )
            == warnings
        )


def processes(service: Service) -> list[psutil.Process]:
    """Return the process of a service, and those of its workers."""
    return [psutil.Process(service.pid), *workers(service).values()]


async def test_no_process_that_holds_a_secret_leaves_a_core_dump(system: System) -> None:
    """Not in a file, which a limit of 0 would do for, nor with the program that `core_pattern` may name."""
    services = [
        await system.key_service(AUTHSVC_WORKERS="2"),
        await system.bridge(HTTPBRIDGE_WORKERS="2"),
        await system.dashboard(),
    ]
    found = [process for service in services for process in processes(service)]
    assert len(found) == 3 + 4 + 1, "parents, workers, the log writer, the dashboard"
    assert {process.rlimit(psutil.RLIMIT_CORE) for process in found} == {(1, 1)}


def is_dumped(system: System, *command: str) -> bool:
    """Start a program where core dumps are on, crash it after its first line, and return whether it was dumped."""
    process = subprocess.Popen(
        ["sh", "-c", 'ulimit -c "$(ulimit -Hc)"; exec "$@"', "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=system.directory,
        env=system.environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline()
        process.send_signal(signal.SIGSEGV)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = -os.WTERMSIG(status)
    return os.WCOREDUMP(status)


def test_a_crash_is_not_dumped(system: System) -> None:
    if not is_dumped(system, sys.executable, "-c", "print('started', flush=True); input()"):
        pytest.skip("the system here dumps nothing that crashes")
    for command in (("authsvc", "serve"), ("httpbridge", "serve"), ("httpbridge", "dashboard")):
        assert not is_dumped(system, str(BIN / command[0]), *command[1:]), command


WITHOUT_A_LIMIT_OF_OURS = """
import ctypes, os, resource
from authsvc.runtime.process import turn_off_core_dumps
prctl = ctypes.CDLL(None).prctl
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
prctl(4, 1, 0, 0, 0)
turn_off_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE), prctl(3, 0, 0, 0, 0))
"""


def test_where_a_limit_of_0_cannot_be_raised_the_process_is_not_dumpable() -> None:
    """The limit of 0 is for files alone."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_LIMIT_OF_OURS], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("(0, 0) 0\n", "")

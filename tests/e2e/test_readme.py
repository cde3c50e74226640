"""What README.md and docs/operations.md tell to type works in a fresh clone; `make run` does all that it says."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.processes import clean_environment
from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GRPCURL = re.compile(r"^grpcurl (?:.*\\\n)*.*\n", re.MULTILINE)
LISTENS = {f"{name}_LISTEN": "127.0.0.1:0" for name in ("AUTHSVC", "HTTPBRIDGE", "HTTPBRIDGE_DASHBOARD")}
GREETED = "State is in"
"""Only the greeting says that, and it is the end of it."""
IN_CI = os.environ.get("CI") == "true"
"""Whether what is missing here is a failure: `.ci/run` sets it."""

pytestmark = [
    pytest.mark.skipif(not IN_CI and not shutil.which("curl"), reason="curl is not installed"),
    pytest.mark.skipif(not IN_CI and not (ROOT / ".git").exists(), reason="only git knows what is in a fresh clone"),
]


class Clone:
    """The tracked files in a directory of their own, with the checkout's `.venv`, which nothing may change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).exists():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name)
        (directory / ".venv").symlink_to(ROOT / ".venv")
        set_up = (ROOT / ".venv" / ".installed").stat().st_mtime
        for name in ("requirements-dev.lock", "pyproject.toml"):
            os.utime(directory / name, (set_up - 1, set_up - 1))
        # The clone's own code, not the checkout's. Should make find `.venv` stale all the same, it fails.
        self.environment = clean_environment() | {"PYTHONPATH": str(directory), "PYTHON": "false"}
        self._runs: list[Run] = []

    def make_run(self, script: str = "make run", **variables: str) -> "Run":
        """Start `make run` as a terminal would: in a process group of its own, which Ctrl-C signals.

        The script may have other commands before it.
        """
        before, make_run = script.strip().rsplit("\n", 1) if "\n" in script.strip() else ("", script.strip())
        assert make_run == "make run"
        output = self.directory / f"make-run-{len(self._runs)}.out"
        with output.open("wb") as out:
            process = subprocess.Popen(
                ["sh", "-eu", "-c", f"{before}\nexec make run"],
                cwd=self.directory,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._runs.append(Run(process, output))
        return self._runs[-1]

    def shell(self, script: str, **variables: str) -> str:
        """Run commands in one shell, as if typed one after the other, and return what they print; fail if one does."""
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=self.directory,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        print(f"--- {script}\n--- printed:\n{done.stdout}")  # noqa: T201
        assert done.returncode == 0
        return done.stdout

    def close(self) -> None:
        """End what still runs."""
        for run in self._runs:
            run.close()


class Run:
    """One `make run`."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output
        self._started: list[psutil.Process] = []

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def has_left_nothing(self) -> bool:
        return not [process for process in self._started if process.is_running()]

    async def greeted(self) -> str:
        """Wait for the greeting and return it."""
        await until("make run greets", lambda: GREETED in self.output or not self.is_running)
        assert self.is_running, self.output
        self.process("authsvc")
        self.process("httpbridge")
        return self.output

    def process(self, name: str) -> psutil.Process:
        """Return the process of that service, or of the program itself."""
        self._started = psutil.Process(self._process.pid).children(recursive=True)
        wanted = "scripts/run.py" if name == "run" else f"{name} serve"
        (process,) = (process for process in self._started if wanted in " ".join(process.cmdline()))
        return process

    async def press_ctrl_c(self) -> None:
        """Signal all of them, as a terminal does: it ends, and nothing that it started is left.

        make passes on that it was interrupted, as it does with every command.
        """
        os.killpg(self._process.pid, signal.SIGINT)
        assert await self.ended() in (0, -signal.SIGINT), self.output
        assert self.has_left_nothing
        assert "Traceback" not in self.output

    async def interrupt(self) -> None:
        """Signal the program alone: it ends with status 0, and nothing that it started is left."""
        self.process("run").send_signal(signal.SIGINT)
        assert await self.ended() == 0, self.output
        assert self.has_left_nothing

    def close(self) -> None:
        """End what still runs, services that lost their parent included."""
        if self.is_running:
            self._started += psutil.Process(self._process.pid).children(recursive=True)
        for process in self._started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()

    async def ended(self) -> int:
        """Wait for its end and return its exit status."""
        await until("make run ends", lambda: not self.is_running)
        status: int = self._process.returncode
        return status


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    clone = Clone(tmp_path)
    try:
        yield clone
    finally:
        clone.close()


@pytest.fixture
def has_grpcurl(capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the lines that call it can be run; says so where they cannot, as on any Debian, which has no package."""
    is_there = shutil.which("grpcurl") is not None
    if not is_there:
        with capsys.disabled():
            print("\ngrpcurl is not installed: the lines that call it are not run")  # noqa: T201
    return is_there


def addresses(greeting: str) -> tuple[str, str]:
    """Return where the bridge and the key service listen, as the greeting's lines have it."""
    logs, keys = re.search(r"://(\S+)/ingest/logs", greeting), re.search(r"://(\S+)/authsvc", greeting)
    assert logs is not None
    assert keys is not None
    return logs[1], keys[1]


def command(greeting: str, program: str) -> str:
    """Return the greeting's command that begins so, with the lines that continue it."""
    before = r"(?:\(umask 077; )?(?:\w+=(?:'.*?'|\S+) )*"
    match = re.search(rf"^  ({before}\S*{program} (?:.*\\\n)*.*)$", greeting, re.MULTILINE)
    assert match is not None, program
    return match[1]


async def ends_with(run: Run, name: str) -> None:
    """Kill that service: all of it ends, and says why."""
    run.process(name).kill()
    assert await run.ended() != 0
    assert run.output.splitlines()[-2] == f"{name} ended (status -9)"
    assert run.has_left_nothing


async def test_every_command_of_the_readme_and_of_the_greeting_works_as_it_stands(
    clone: Clone, has_grpcurl: bool
) -> None:
    """In order, in one shell, on other ports than the usual ones, which may be taken; a second start has it all.

    Ctrl-C ends the first; the second ends with its key service, and says so.
    """
    first, *blocks = BLOCK.findall((clone.directory / "README.md").read_text())
    assert first == "make run\n"
    run = clone.make_run(**LISTENS)
    greeting = await run.greeted()
    logs, keys = addresses(greeting)
    variables = {"AUTHSVC_LISTEN": keys, "HTTPBRIDGE_LISTEN": logs}

    typed = "".join(blocks).replace("127.0.0.1:8080", logs).replace("127.0.0.1:50051", keys)
    printed = clone.shell(typed, **variables)
    parts = [
        r'\{"ok": true, "count": 1\}',
        r"checkout card declined .*order.*1042",
        r"https://shop\.example\n\*\.shop\.example\n",
        r"origin not allowed key=\w+ project=shop\nrefused\n",
        r'"verdict": *"VERDICT_ALLOWED"',
        r"revoked key_\w+ of project shop",
        r"\ndead everywhere, 1 bridge confirmed in \d+ ms\n",
        r"KEY +ISSUED +REVOKED\nkey_\w+ .*active\nkey_\w+ .*Z\n",
        r"NAME +HOLDER +BEHIND .*\n\S+ +[0-9a-f]{32} +0 ",
        r"issue +shop  key_\w+  by .*\n.*set_origins +shop  by .*\n.*revoke +shop  key_\w+, next key_\w+  by ",
    ]
    for part in parts:
        assert re.search(part, printed), part
    assert re.search(".*".join(parts), printed, re.DOTALL), "in this order"

    assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
    assert "hello, world" in clone.shell(command(greeting, ".venv/bin/httpbridge logs"))
    assert "VERDICT_ALLOWED" in clone.shell(command(greeting, ".venv/bin/buf"))
    if has_grpcurl:
        assert "VERDICT_ALLOWED" in clone.shell(command(greeting, "grpcurl"))
    await run.press_ctrl_c()

    state = clone.directory / "var"
    kept = state / "demo-key"
    assert (state.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
    run = clone.make_run(**LISTENS)
    greeting = await run.greeted()
    assert f"Bearer {kept.read_text().strip()}" in greeting
    assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
    assert clone.shell(command(greeting, ".venv/bin/httpbridge logs")).count("hello, world") == 2
    await ends_with(run, "authsvc")


@pytest.mark.long
async def test_every_command_of_the_tls_section_works_as_it_stands(clone: Clone, has_grpcurl: bool) -> None:
    """HTTPS and mutual TLS, then TLS without client certificates; the greeting's lines fit as well."""
    operations = (clone.directory / "docs" / "operations.md").read_text()
    section = operations.partition("### TLS, tried on this machine\n")[2].partition("\n## ")[0]
    mutual, with_certificates, plain, without = BLOCK.findall(section)
    key = ""
    for start, typed in ((mutual, with_certificates), (plain, without)):
        run = clone.make_run(start, **LISTENS)
        greeting = await run.greeted()
        logs, keys = addresses(greeting)
        script = typed.replace("127.0.0.1:8080", logs).replace("127.0.0.1:50051", keys) + 'echo "KEY=$KEY"\n'
        calls = script.count("KeyService/Validate")
        if not has_grpcurl:
            script, left_out = GRPCURL.subn("", script)
            calls -= left_out
        printed = clone.shell(script, AUTHSVC_LISTEN=keys, KEY=key)
        key = printed.rpartition("KEY=")[2].strip()
        assert printed.count("VERDICT_ALLOWED") == calls > 0
        assert ('{"ok": true, "count": 1}' in printed) == ("curl -sS" in typed)

        assert "https://" in command(greeting, "curl -sS")
        assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
        assert "VERDICT_ALLOWED" in clone.shell(command(greeting, ".venv/bin/buf"))
        assert "-plaintext" not in command(greeting, "grpcurl")
        if has_grpcurl:
            assert "VERDICT_ALLOWED" in clone.shell(command(greeting, "grpcurl"))
        await run.press_ctrl_c()


@pytest.mark.long
async def test_make_run_works_whatever_the_umask_and_its_state_is_private(clone: Clone) -> None:
    """In a clone that was made with it, so that everybody can write to the directory around."""
    clone.directory.chmod(0o777)
    run = clone.make_run("umask 000\nmake run", **LISTENS)
    greeting = await run.greeted()
    assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
    state = clone.directory / "var"
    modes = {path.name: path.stat().st_mode & 0o077 for path in (state, *state.iterdir())}
    assert set(modes.values()) == {0}, modes
    assert {"admin-token", "bridge-token", "dashboard-token", "authsvc.db", "logs.db", "demo-key"} <= modes.keys()
    await run.interrupt()


async def test_make_run_with_a_misspelt_variable_says_so_and_starts_nothing(clone: Clone) -> None:
    run = clone.make_run(**LISTENS, HTTPBRIDGE_TLSCERT="cert.pem")
    assert await run.ended() == 2
    assert "HTTPBRIDGE_TLSCERT: there is no such variable; did you mean HTTPBRIDGE_TLS_CERT?\n" in run.output
    assert not (clone.directory / "var").exists()


@pytest.mark.long
async def test_make_run_without_the_demo_key_says_why_and_what_it_advises_mends_it(clone: Clone) -> None:
    """Whether the key or its file is gone; the lines with a key of one's own fit until then."""
    run = clone.make_run(**LISTENS)
    await run.greeted()
    await run.interrupt()
    kept = clone.directory / "var" / "demo-key"
    key = kept.read_text().strip()
    kept.unlink()
    token = {"AUTHSVC_BRIDGE_TOKEN": 3 * "a-bridge-token"}
    run = clone.make_run(**LISTENS, **token)
    greeting = await run.greeted()
    assert re.search(r"There is no demo key to show: authsvc: .*\(ALREADY_EXISTS\)\n", greeting)
    assert "YOUR_KEY" in greeting
    asked = command(greeting, ".venv/bin/buf").replace("YOUR_KEY", key)
    assert "VERDICT_ALLOWED" in clone.shell(asked, **token)
    clone.shell(command(greeting, ".venv/bin/authsvc revoke"))
    assert kept.stat().st_mode & 0o777 == 0o600
    await run.interrupt()

    kept.write_text(key)  # which was revoked by that
    run = clone.make_run(**LISTENS, AUTHSVC_API_KEY="of something else")
    greeting = await run.greeted()
    assert "There is no demo key to show: the service says of the key in var/demo-key: invalid key\n" in greeting
    clone.shell(command(greeting, ".venv/bin/authsvc revoke"))
    await run.interrupt()

    run = clone.make_run(**LISTENS)
    greeting = await run.greeted()
    assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
    assert kept.stat().st_mode & 0o777 == 0o600
    await run.interrupt()


@pytest.mark.long
async def test_the_greeting_fits_what_was_configured_and_shows_no_secret(clone: Clone, tmp_path: Path) -> None:
    """Its commands are pasted into another shell, which has of the variables no more than the secrets."""
    secrets = {
        "AUTHSVC_ADMIN_TOKEN": 3 * "canary-admin",
        "AUTHSVC_DATABASE_URL": f"sqlite:///{tmp_path}/canary-keys.db",
        "HTTPBRIDGE_LOG_STORE_URL": f"sqlite:///{tmp_path}/canary-logs.db",
        "HTTPBRIDGE_DASHBOARD_TOKEN": 3 * "canary-dashboard",
    }
    run = clone.make_run(**LISTENS, **secrets, AUTHSVC_STATE_DIR="some state")
    greeting = await run.greeted()
    assert "canary" not in greeting
    assert greeting.rstrip().endswith(
        "State is in some state/: keys where AUTHSVC_DATABASE_URL says, logs where HTTPBRIDGE_LOG_STORE_URL says, "
        "generated tokens, the demo key in demo-key."
    )
    assert not (clone.directory / "var").exists()
    assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
    assert "VERDICT_ALLOWED" in clone.shell(command(greeting, ".venv/bin/buf"))
    assert "hello, world" in clone.shell(command(greeting, ".venv/bin/httpbridge logs"), **secrets)
    assert "/sign-in/link?t=" in clone.shell(command(greeting, ".venv/bin/httpbridge sign-in-link"), **secrets)
    without = clone.shell(f"({command(greeting, '.venv/bin/httpbridge logs')}) || echo failed")
    assert re.search(r"HTTPBRIDGE_LOG_STORE_URL: .*\nfailed\n", without), "and no other store is shown instead"
    await run.interrupt()

    run = clone.make_run(**LISTENS, HTTPBRIDGE_STATE_DIR="other")
    greeting = await run.greeted()
    assert "State is in other/: keys in authsvc.db, logs in logs.db, generated tokens, the demo key in" in greeting
    assert clone.shell(command(greeting, "curl -sS")) == '{"ok": true, "count": 1}\n'
    assert "hello, world" in clone.shell(command(greeting, ".venv/bin/httpbridge logs"))
    await run.interrupt()


@pytest.mark.parametrize(
    "ends", ["SIGINT", *(pytest.param(ends, marks=pytest.mark.long) for ends in ("Ctrl-C", "authsvc", "httpbridge"))]
)
async def test_make_run_ends_at_once_while_it_still_waits_for_the_start(clone: Clone, ends: str) -> None:
    """The bridge is not ready, since what it takes for the key service never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_SECONDS)
        run = clone.make_run(**LISTENS, HTTPBRIDGE_KEY_SERVICE=f"127.0.0.1:{silent.getsockname()[1]}")
        with (await asyncio.to_thread(silent.accept))[0]:
            started = time.monotonic()
            if ends == "SIGINT":
                await run.interrupt()
            elif ends == "Ctrl-C":
                run.process("run")
                await run.press_ctrl_c()
            else:
                run.process(ends).kill()
                assert await run.ended() != 0
                assert f"{ends} ended (status -9)\n" in run.output
    assert time.monotonic() - started < 15
    assert GREETED not in run.output


@pytest.mark.long
async def test_make_run_says_that_the_bridge_ended(clone: Clone) -> None:
    run = clone.make_run(**LISTENS)
    await run.greeted()
    await ends_with(run, "httpbridge")


@pytest.mark.parametrize("name", ["authsvc", "httpbridge"])
async def test_make_run_on_a_taken_port_is_one_clear_line(clone: Clone, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        run = clone.make_run(**(LISTENS | {f"{name.upper()}_LISTEN": taken}))
        assert await run.ended() != 0
    # Besides make's own line, and events: the bridge may have met the key service before it listens.
    ours = [line for line in run.output.splitlines() if not line.startswith("make: ") and " [info " not in line]
    assert len(ours) == 1, run.output
    assert f"cannot listen on {taken}" in ours[0]
    assert name.upper() in ours[0]

"""`make run`: the services and the dashboard on this machine, a key to try them with, and the lines to paste.

Takes the services' own environment variables; without any, SQLite and loopback.
"""

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import aiohttp

BIN = Path(sys.executable).parent
PROJECT = "demo"
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0


class StartError(Exception):
    """A service that did not start; it has said why itself."""


async def start(name: str, environ: Mapping[str, str], command: str = "serve") -> tuple[Process, str]:
    """Start `NAME COMMAND`; return it and the address it says it listens on."""
    process = await asyncio.create_subprocess_exec(
        BIN / name,
        command,
        stdout=PIPE,
        env=environ,
        start_new_session=True,  # Ctrl-C reaches us, who stop in order
    )
    assert process.stdout is not None  # noqa: S101 - for the type checker
    line = (await process.stdout.readline()).decode()
    fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
    if "address" not in fields:
        await process.wait()
        raise StartError(name)
    return process, ("https://" if fields.get("tls") == "on" else "http://") + fields["address"]


async def stop(process: Process) -> None:
    """Let a service drain; kill it if it takes too long."""
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            process.kill()
            await process.wait()


def demo_key(state: Path, environ: Mapping[str, str]) -> str | None:
    """Return the demo project's key, issued at the first start; None when it was revoked since."""
    kept = state / "demo-key"
    if not kept.exists():
        issued = _authsvc("issue", PROJECT, environ=environ)
        if issued.returncode != 0:
            return None
        kept.touch(mode=0o600)
        kept.write_text(issued.stdout)
    key = kept.read_text().strip()
    return key if _authsvc("validate", environ=environ, stdin=key).returncode == 0 else None


def _authsvc(*arguments: str, environ: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [BIN / "authsvc", *arguments]
    return subprocess.run(command, check=False, env=environ, input=stdin, capture_output=True, text=True)


async def ready(url: str) -> None:
    """Return when the bridge answers that it can take logs."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_SECONDS_MAX):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(url + "/ready", ssl=False) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


GREETING = """
Everything is running. Ctrl-C stops it.

Open the dashboard (this link signs you in, for ten minutes; later: {bin}/httpbridge sign-in-link):
  {link}
Send a log:
  curl -sS -w '\\n' {logs_url}/ingest/logs -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d '{{"service": "hello", "logs": [{{"level": "info", "message": "hello, world"}}]}}'
See it:
  {bin}/httpbridge logs {project}
Check the key over gRPC:
  grpcurl -plaintext -H "Authorization: Bearer $(cat {state}/bridge-token)" \\
    -d '{{"api_key": "{key}"}}' {keys_address} authsvc.v1.KeyService/Validate
  {bin}/buf curl --protocol grpc --http2-prior-knowledge -H "Authorization: Bearer $(cat {state}/bridge-token)" \\
    -d '{{"api_key": "{key}"}}' {keys_url}/authsvc.v1.KeyService/Validate

State is in {state}/: keys in authsvc.db, logs in logs.db, tokens, the demo key in demo-key.
"""
NO_KEY = """
The key in {state}/demo-key is not the active one of project {project} any more; for a new one:
  {bin}/authsvc revoke {project}
"""


def sign_in_link(url: str, environ: Mapping[str, str]) -> str:
    """Return a link that signs in to the dashboard."""
    command: list[str | Path] = [BIN / "httpbridge", "sign-in-link", "--url", url]
    return subprocess.run(command, check=True, env=environ, capture_output=True, text=True).stdout.strip()


def greeting(keys_url: str, logs_url: str, link: str, state: Path, key: str | None) -> str:
    """Return what to paste, and where things are."""
    return (GREETING if key else GREETING + NO_KEY).format(
        keys_url=keys_url,
        keys_address=keys_url.partition("://")[2],
        logs_url=logs_url,
        link=link,
        state=state,
        key=key or "YOUR_KEY",
        bin=os.path.relpath(BIN),
        project=PROJECT,
    )


async def run() -> int:
    """Run until a signal comes or a service ends; return the exit status."""
    state = os.environ.get("AUTHSVC_STATE_DIR") or os.environ.get("HTTPBRIDGE_STATE_DIR") or "var"
    environ = {"AUTHSVC_STATE_DIR": state, "HTTPBRIDGE_STATE_DIR": state} | dict(os.environ)
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    processes: list[Process] = []
    try:
        key_service, keys_url = await start("authsvc", environ)
        processes.append(key_service)
        environ["AUTHSVC_ADDRESS"] = keys_url.partition("://")[2]
        environ.setdefault("HTTPBRIDGE_KEY_SERVICE", environ["AUTHSVC_ADDRESS"])
        bridge, logs_url = await start("httpbridge", environ)
        processes.append(bridge)
        environ.setdefault("HTTPBRIDGE_PUBLIC_URL", logs_url)
        dashboard, dashboard_url = await start("httpbridge", environ, "dashboard")
        processes.append(dashboard)
        key = await asyncio.to_thread(demo_key, Path(state), environ)
        await ready(logs_url)
        link = await asyncio.to_thread(sign_in_link, dashboard_url, environ)
        print(greeting(keys_url, logs_url, link, Path(state), key), flush=True)
        ends = [asyncio.create_task(interrupted.wait()), *(asyncio.create_task(p.wait()) for p in processes)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        return 0 if interrupted.is_set() else 1
    except StartError:
        return 1
    except TimeoutError:
        print(f"httpbridge was not ready within {START_SECONDS_MAX:g} s", file=sys.stderr)
        return 1
    finally:
        for process in reversed(processes):  # the key service last: the others still need it
            await stop(process)


def main() -> NoReturn:
    """Run, and exit."""
    sys.exit(asyncio.run(run()))


if __name__ == "__main__":
    main()

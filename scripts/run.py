"""`make run`: the services and the dashboard on this machine, a key to try them with, and the lines to paste.

Takes the services' own environment variables; without any, SQLite and loopback.
"""

import asyncio
import os
import shlex
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import aiohttp

from authsvc.config import BRIDGE_TOKEN_FILE
from authsvc.config import Config as KeyServiceConfig
from authsvc.runtime.environment import Address, ConfigurationError
from httpbridge.config import Config as BridgeConfig

BIN = Path(sys.executable).parent
PROJECT = "demo"
KEY_FILE = "demo-key"
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0


class InterruptedRunError(Exception):
    """A signal came: stop, and that is no failure."""


class FailedRunError(Exception):
    """Why there is nothing to run any more; without a text when a service has said it itself."""


class Services:
    """The processes, which end with the program. The first that ends by itself fails the group's other tasks."""

    def __init__(self, group: asyncio.TaskGroup, environ: Mapping[str, str]) -> None:
        self._group = group
        self._environ = environ
        self._processes: list[Process] = []

    async def start(self, name: str, command: str = "serve") -> str:
        """Start `NAME COMMAND`; return the URL at which it listens, as it says, or is reached from here."""
        process = await asyncio.create_subprocess_exec(
            BIN / name,
            command,
            stdin=DEVNULL,
            stdout=PIPE,
            env=self._environ,
            start_new_session=True,  # Ctrl-C reaches us, who stop in order
        )
        self._processes.append(process)
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)).decode()
        except TimeoutError:
            raise FailedRunError(f"{name} did not start within {START_SECONDS_MAX:g} s") from None
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "address" not in fields:
            status = await process.wait()
            raise FailedRunError("" if status > 0 else f"{name} ended (status {status})")
        self._group.create_task(_fail_at_end(name, process))
        return f"{'https' if fields.get('tls') == 'on' else 'http'}://{Address.parse(fields['address'])}"

    async def stop(self) -> None:
        """Let the services drain, the last one first: it still needs the others; kill one that takes too long."""
        for process in reversed(self._processes):
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _fail_at_end(name: str, process: Process) -> NoReturn:
    raise FailedRunError(f"{name} ended (status {await process.wait()})")


async def demo_key(state: Path, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the demo project's key, issued at the first start; or None and why there is none to show."""
    kept = state / KEY_FILE
    key = kept.read_text().strip() if kept.exists() else ""
    if not key:  # also where the line of NO_KEY failed, which leaves an empty file
        status, key, reason = await _run("authsvc", "issue", PROJECT, environ=environ)
        if status != 0:
            return None, reason
        kept.touch(mode=0o600)
        kept.write_text(key)
    status, verdict, reason = await _run("authsvc", "validate", environ={**environ, "AUTHSVC_API_KEY": key})
    return (key, "") if status == 0 else (None, reason or f"the service says of the key in {kept}: {verdict}")


async def sign_in_link(url: str, environ: Mapping[str, str]) -> str:
    """Return a link that signs in to the dashboard."""
    status, link, reason = await _run("httpbridge", "sign-in-link", "--url", url, environ=environ)
    if status != 0:
        raise FailedRunError(reason)
    return link


async def _run(program: str, *arguments: str, environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a command; return its exit status and what it printed, without the last line's end."""
    process = await asyncio.create_subprocess_exec(
        BIN / program, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environ, start_new_session=True
    )
    try:
        printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, printed.decode().strip(), errors.decode().strip()


async def ready(url: str) -> None:
    """Return when the bridge answers that it can take logs."""
    reason = "it does not answer"
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(START_SECONDS_MAX):
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(url + "/ready", ssl=False) as answer:
                        if answer.status == 200:
                            return
                        reason = await answer.text()
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise FailedRunError(f"httpbridge was not ready within {START_SECONDS_MAX:g} s: {reason}") from None


GREETING = """
Everything is running. Ctrl-C stops it.

Open the dashboard (this link signs you in, once, within ten minutes):
  {link}
For another link:
  {link_settings}{bin}/httpbridge sign-in-link{link_url}
Send a log:
  curl -sS{curl_tls} -w '\\n' {logs_url}/ingest/logs \\
    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d '{{"service": "hello", "logs": [{{"level": "info", "message": "hello, world"}}]}}'
See it:
  {logs_settings}{bin}/httpbridge logs {project}
Check the key over gRPC:
  grpcurl{grpcurl_tls} -H "Authorization: Bearer {token}" \\
    -d '{{"api_key": "{key}"}}' {keys_address} authsvc.v1.KeyService/Validate
  {bin}/buf curl --protocol grpc{buf_tls} -H "Authorization: Bearer {token}" \\
    -d '{{"api_key": "{key}"}}' {keys_url}/authsvc.v1.KeyService/Validate

State is in {state}/: {places}.
"""
NO_KEY = """
There is no demo key to show: {reason}
For a new one, which the next start shows, and with which the one in use stops working:
  (umask 077; {keys_settings}{bin}/authsvc revoke {project} --yes > {key_file})
"""
DEFAULTS = {"AUTHSVC_STATE_DIR": "var", "HTTPBRIDGE_STATE_DIR": "var", "AUTHSVC_ADDRESS": "127.0.0.1:50051"}
DASHBOARD_URL = "http://127.0.0.1:8081"
SECRETS = ("_TOKEN", "_URL")
LINK_SETTINGS = ("HTTPBRIDGE_STATE_DIR", "HTTPBRIDGE_DASHBOARD_TOKEN")
LOGS_SETTINGS = ("HTTPBRIDGE_STATE_DIR", "HTTPBRIDGE_LOG_STORE_URL")
KEYS_SETTINGS = (
    "AUTHSVC_STATE_DIR",
    "AUTHSVC_ADDRESS",
    "AUTHSVC_ADMIN_TOKEN",
    "AUTHSVC_CA",
    "AUTHSVC_CLIENT_CERT",
    "AUTHSVC_CLIENT_KEY",
    "AUTHSVC_ALLOW_INSECURE",
)


def greeting(
    keys_url: str,
    logs_url: str,
    dashboard_url: str,
    link: str,
    state: Path,
    key: str | None,
    reason: str,
    environ: Mapping[str, str],
) -> str:
    """Return what to paste, into any shell in this directory, and where things are."""
    keys_are_tls, logs_are_tls = keys_url.startswith("https:"), logs_url.startswith("https:")
    token_file = f"$(cat {shlex.quote(str(state))}/{BRIDGE_TOKEN_FILE})"
    return (GREETING if key else GREETING + NO_KEY).format(
        keys_url=keys_url,
        keys_address=keys_url.partition("://")[2],
        logs_url=logs_url,
        link=link,
        link_url="" if dashboard_url == DASHBOARD_URL else f" --url {dashboard_url}",
        link_settings=_settings(environ, LINK_SETTINGS),
        logs_settings=_settings(environ, LOGS_SETTINGS),
        keys_settings=_settings(environ, KEYS_SETTINGS),
        curl_tls=_options(environ, {"AUTHSVC_CA": "--cacert"}) if logs_are_tls else "",
        grpcurl_tls=_options(environ, _files("-")) if keys_are_tls else " -plaintext",
        buf_tls=_options(environ, _files("--")) if keys_are_tls else " --http2-prior-knowledge",
        state=state,
        places=_places(state, environ),
        token="$AUTHSVC_BRIDGE_TOKEN" if environ.get("AUTHSVC_BRIDGE_TOKEN") else token_file,
        key=key or "YOUR_KEY",
        key_file=shlex.quote(str(state / KEY_FILE)),
        reason=reason,
        bin=os.path.relpath(BIN),
        project=PROJECT,
    )


def _settings(environ: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the variables, before a command that without them would act on something else than what runs.

    A secret is not shown: the shell has to have it, and says so if it does not.
    """
    differing = [name for name in names if environ.get(name) and environ[name] != DEFAULTS.get(name)]
    return "".join(
        f'{name}="${{{name}:?}}" ' if name.endswith(SECRETS) else f"{name}={shlex.quote(environ[name])} "
        for name in differing
    )


def _places(state: Path, environ: Mapping[str, str]) -> str:
    """Return what is where in the state directory, or instead of there."""
    places = []
    for what, service, file, url in (
        ("keys", "AUTHSVC", "authsvc.db", "AUTHSVC_DATABASE_URL"),
        ("logs", "HTTPBRIDGE", "logs.db", "HTTPBRIDGE_LOG_STORE_URL"),
    ):
        directory = Path(environ[f"{service}_STATE_DIR"])
        path = Path(file) if directory == state else directory / file
        places.append(f"{what} where {url} says" if environ.get(url) else f"{what} in {path}")
    return ", ".join([*places, "generated tokens", f"the demo key in {KEY_FILE}"])


def _files(dashes: str) -> dict[str, str]:
    return {
        "AUTHSVC_CA": f"{dashes}cacert",
        "AUTHSVC_CLIENT_CERT": f"{dashes}cert",
        "AUTHSVC_CLIENT_KEY": f"{dashes}key",
    }


def _options(environ: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Return the options that name the files of those variables which are set."""
    return "".join(
        f" {option} {shlex.quote(environ[variable])}" for variable, option in names.items() if environ.get(variable)
    )


async def start_up(services: Services, state: Path, environ: dict[str, str]) -> None:
    """Start everything, and print the greeting when logs can be taken."""
    keys_url = await services.start("authsvc")
    environ["AUTHSVC_ADDRESS"] = keys_url.partition("://")[2]
    environ.setdefault("HTTPBRIDGE_KEY_SERVICE", environ["AUTHSVC_ADDRESS"])
    if bridge_token := environ.get("AUTHSVC_BRIDGE_TOKEN"):
        environ.setdefault("HTTPBRIDGE_KEY_SERVICE_TOKEN", bridge_token)
    logs_url = await services.start("httpbridge")
    environ.setdefault("HTTPBRIDGE_PUBLIC_URL", logs_url)
    dashboard_url = await services.start("httpbridge", "dashboard")
    key, reason = await demo_key(state, environ)
    await ready(logs_url)
    link = await sign_in_link(dashboard_url, environ)
    print(greeting(keys_url, logs_url, dashboard_url, link, state, key, reason, environ), flush=True)


async def run() -> int:
    """Run until a signal comes or a service ends; return the exit status."""
    state = os.environ.get("AUTHSVC_STATE_DIR") or os.environ.get("HTTPBRIDGE_STATE_DIR") or "var"
    environ = dict(os.environ)
    for variable in ("AUTHSVC_STATE_DIR", "HTTPBRIDGE_STATE_DIR"):
        environ[variable] = environ.get(variable) or state  # an empty one counts as unset
    try:  # for both read them as they are meant, and each knows the other's names
        environ["AUTHSVC_STATE_DIR"] = state = str(KeyServiceConfig.from_environment(environ).state_dir)
        environ["HTTPBRIDGE_STATE_DIR"] = str(BridgeConfig.from_environment(environ).state_dir)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last when the terminal is closed
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)

    async def raise_when_interrupted() -> None:
        await interrupted.wait()
        raise InterruptedRunError

    status = 0
    try:
        async with asyncio.TaskGroup() as group:
            services = Services(group, environ)
            group.create_task(raise_when_interrupted())
            await start_up(services, Path(state), environ)
    except* InterruptedRunError:
        pass
    except* FailedRunError as failed:
        status = 1
        print("".join(f"{error}\n" for error in failed.exceptions if str(error)), end="", file=sys.stderr)
    finally:
        await services.stop()
    return status


def main() -> NoReturn:
    """Run, and exit."""
    sys.exit(asyncio.run(run()))


if __name__ == "__main__":
    main()

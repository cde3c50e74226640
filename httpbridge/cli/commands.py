"""The command `httpbridge`: `serve` runs the bridge, `dashboard` the dashboard, `logs` shows what is stored.

`store_commands` has those that are about the whole of it.

Exit status: 0, and those of `authsvc.runtime.commands`; 3: the log store is unavailable.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import msgspec

from authsvc.runtime.commands import Commands, announce, note, service_config, user_name, writing
from authsvc.runtime.control_channel import ControlChannel, WorkerSpec
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.process import ignore_stop_signals, stop_at_signals
from authsvc.runtime.workers import run_workers
from httpbridge.cli.data_commands import DATA_COMMANDS
from httpbridge.cli.running import project_argument, run_with_store, since_option
from httpbridge.cli.store_commands import STORE_COMMANDS
from httpbridge.config import Config
from httpbridge.logs import Level

_DIRECTORY_BYTES_MAX = 90  # of the 107 that Linux gives the path of a socket


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deeptracer-auth")
def main() -> None:
    """Take in logs over HTTP, authenticated by the key service, and show what is stored.

    Configured by HTTPBRIDGE_… environment variables: see docs/configuration.md.
    """


for _command in (*STORE_COMMANDS, *DATA_COMMANDS):
    main.add_command(_command)


@main.command()
def serve() -> None:
    """Run the bridge until SIGTERM or SIGINT."""
    config = _bridge_config()
    started = partial(announce, "httpbridge", config.tls_cert is not None)
    if config.workers > 1:
        run_with_store(config, _run_workers(config, started))
        return
    from httpbridge import app  # noqa: PLC0415 - gRPC and aiohttp, which the other commands do not need

    async def work() -> None:
        await app.serve(config, stop_at_signals(), started)

    run_with_store(config, work())


@main.command(hidden=True)
@click.option("--log-writer", type=click.Path(path_type=Path))
@click.argument("spec", type=WorkerSpec.parse)
def worker(spec: WorkerSpec, log_writer: Path | None) -> None:
    """Be one of the processes of `serve`, which starts it."""
    config = msgspec.structs.replace(_bridge_config(spec), listen=spec.address)
    from httpbridge import app  # noqa: PLC0415 - as above

    async def work() -> None:
        async with ControlChannel(spec) as channel:
            await app.serve(config, stop_at_signals(), lambda _: channel.ready(), is_worker=True, log_writer=log_writer)

    run_with_store(config, work())


@main.command(hidden=True)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("spec", type=WorkerSpec.parse)
def log_writer(path: Path, spec: WorkerSpec) -> None:
    """Be the process that stores the logs of the workers of `serve`, which starts it."""
    ignore_stop_signals()  # the parent says when: after the last worker
    config = _bridge_config(spec)
    from httpbridge.log_store.retention import Retention  # noqa: PLC0415 - the database libraries
    from httpbridge.log_store.writer import serve_writer  # noqa: PLC0415 - the database libraries

    async def work() -> None:
        stop = asyncio.Event()
        config.make_store_dir()
        async with ControlChannel(spec, stop.set) as channel:
            retention = Retention(config.retention_days, config.store_bytes_max)
            await serve_writer(config.store_url(), path, stop, channel.ready, retention)

    run_with_store(config, work())
    with suppress(OSError):  # a parent that was killed cannot do it
        path.unlink()
        path.parent.rmdir()


async def _run_workers(config: Config, started: Callable[[Address], None]) -> None:
    """Run several workers. SQLite has one writer at a time, so they leave that to a process of its own."""
    if not config.store_url().startswith("sqlite"):
        await run_workers(config.listen, "HTTPBRIDGE_LISTEN", config.workers, ("worker",), started)
        return
    with _socket_directory() as directory:
        path = str(Path(directory) / "log-writer")
        writer = {"log-writer": ("log-writer", path)}
        arguments = ("worker", "--log-writer", path)
        await run_workers(config.listen, "HTTPBRIDGE_LISTEN", config.workers, arguments, started, writer)


def _socket_directory() -> TemporaryDirectory[str]:
    """Make a directory for this user alone, whose path is short enough for that of a socket."""
    try:
        directory = TemporaryDirectory(prefix="httpbridge-")
    except OSError as error:
        raise ConfigurationError(f"TMPDIR: {error.strerror}") from None
    if len(os.fsencode(directory.name)) > _DIRECTORY_BYTES_MAX:
        directory.cleanup()
        raise ConfigurationError(f"TMPDIR: {directory.name} is too long for the path of a socket")
    return directory


@main.command()
def dashboard() -> None:
    """Run the dashboard until SIGTERM or SIGINT."""
    config = service_config(Config)
    from httpbridge.dashboard import app  # noqa: PLC0415 - as above

    started = partial(announce, "httpbridge-dashboard", config.tls_cert is not None)

    async def work() -> None:
        await app.serve(config, stop_at_signals(), started)

    run_with_store(config, work())


@main.command()
@click.option("--name", help="Who is signed in; the name stands in the audit trail. Default: yours on this machine.")
@click.option("--url", help="Where the dashboard is. Default: HTTPBRIDGE_DASHBOARD_LISTEN.")
def sign_in_link(name: str | None, url: str | None) -> None:
    """Print a link that signs in to the dashboard, once, within ten minutes."""
    from httpbridge.dashboard.app import open_sessions  # noqa: PLC0415 - as above

    config = Config.from_environment(os.environ)
    if url is None and config.dashboard_listen.is_every_interface:
        raise click.UsageError("The dashboard listens on every address: say by --url which one people use.")
    sessions = open_sessions(config)
    try:
        link = sessions.link(name or user_name())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--name") from None
    click.echo(f"{(url or config.dashboard_url()).rstrip('/')}/sign-in/link?t={link}")


@main.command()
@project_argument
@since_option
@click.option("--level", type=click.Choice([level.value for level in Level]), help="Only entries of this level.")
@click.option("--follow", is_flag=True, help="Go on, showing entries as they arrive.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def logs(project: str, since: datetime | None, level: str | None, follow: bool, as_json: bool) -> None:
    """Show PROJECT's stored logs, newest last: the last 100 entries, or all since a time."""
    from httpbridge.cli import log_view  # noqa: PLC0415 - the database libraries
    from httpbridge.log_store.selection import LogFilter  # noqa: PLC0415

    config = Config.from_environment(os.environ)
    levels = frozenset([Level(level)] if level else ())
    selection = LogFilter(project_id=project, since=since, levels=levels)

    if as_json and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors=log_view.JSON_ESCAPES)
    color = sys.stdout.isatty()

    def write(line: str) -> None:
        with writing():
            sys.stdout.write(line)  # not by click, which makes UTF-8 of ASCII, and flushes each line
            if follow:
                sys.stdout.flush()

    work = log_view.show_logs(config.store_url(), selection, follow=follow, as_json=as_json, color=color, write=write)
    with suppress(KeyboardInterrupt):
        is_any = run_with_store(config, work)
        with writing():
            sys.stdout.flush()
        if not is_any:
            note(f"no logs of project {project}{' match' if since or level else ''}")


def _bridge_config(spec: WorkerSpec | None = None) -> Config:
    os.umask(0o077)  # what is stored is this user's alone, wherever the files are
    return service_config(Config, spec)

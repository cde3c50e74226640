"""The command `authsvc`: `serve` and `migrate` run the service, and the admin's commands are gRPC clients of it."""

import os

# gRPC's core, which reads this as it is imported, would print what is wrong with a connection or an address, at
# length; we say it in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import structlog

from authsvc.cli.admin_commands import ADMIN_COMMANDS
from authsvc.config import Config
from authsvc.errors import StoreUnavailableError
from authsvc.runtime.commands import REFUSED, UNAVAILABLE, Commands, announce, fail, note, run, service_config, show
from authsvc.runtime.control_channel import ControlChannel, WorkerSpec
from authsvc.runtime.environment import ConfigurationError
from authsvc.runtime.process import stop_at_signals, use_batch_scheduling
from authsvc.runtime.workers import run_workers

_T = TypeVar("_T")

_log = structlog.get_logger("authsvc")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deeptracer-auth")
def main() -> None:
    """Issue, revoke and validate the API keys of projects.

    Configured by AUTHSVC_… environment variables: see docs/configuration.md.
    """


for _command in ADMIN_COMMANDS:
    main.add_command(_command)


@main.command()
def serve() -> None:
    """Run the key service until SIGTERM or SIGINT."""
    config = service_config(Config)
    if config.is_margin_thin:
        _log.warning("lease_margin_thin", seconds=config.lease_margin_seconds, lease_seconds=config.lease_seconds)
    started = partial(announce, "authsvc", config.tls_cert is not None)
    if config.workers > 1:
        _run(run_workers(config.listen, "AUTHSVC_LISTEN", config.workers, ("worker",), started))
        return
    from authsvc import app  # noqa: PLC0415 - the database libraries, which the other commands do not need

    async def work() -> None:
        await app.serve(config, stop_at_signals(), started)

    use_batch_scheduling()
    _run(work())


@main.command(hidden=True)
@click.argument("spec", type=WorkerSpec.parse)
def worker(spec: WorkerSpec) -> None:
    """Be one of the processes of `serve`, which starts it."""
    config = msgspec.structs.replace(service_config(Config, spec), listen=spec.address)
    from authsvc import app  # noqa: PLC0415 - as above

    async def work() -> None:
        async with ControlChannel(spec) as channel:
            await app.serve(config, stop_at_signals(), lambda _: channel.ready(), channel=channel)

    use_batch_scheduling()
    _run(work())


@main.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    from authsvc import app  # noqa: PLC0415 - as above

    before, after = _run(app.migrate(Config.from_environment(os.environ)))
    if before == after:
        note(f"the schema is at version {after} already")
    else:
        note(f"the schema is now at version {after}, was {before or 'empty'}")


@main.command(short_help="Make every bridge forget its cached verdicts.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def renew_epoch(yes: bool) -> None:
    """Make every bridge forget its cached verdicts: after the database was restored or failed over.

    Works on the database itself, like migrate.
    """
    from authsvc import app  # noqa: PLC0415 - as above

    if not yes and not click.confirm("Every bridge asks anew about each key. Go on?", err=True):
        fail("nothing was changed", REFUSED)
    _run(app.renew_epoch(Config.from_environment(os.environ)))
    note("the database has a new epoch")


@main.command(short_help="Make a small CA and certificates to try TLS with.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def dev_certs(directory: Path) -> None:
    """Make a small CA, and certificates for this machine and a client, in DIR; print the variables that use them."""
    try:
        from authsvc.cli import dev_certs as certificates  # noqa: PLC0415 - what nothing else needs
    except ImportError:
        raise ConfigurationError("dev-certs needs the package trustme: pip install trustme") from None
    certificates.write(directory, datetime.now(UTC))
    note(f"wrote certificates, keys and {certificates.VARIABLES_FILE} to {directory}; not for production")
    show(certificates.exports(directory), ends_line=False)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end what works on the database."""
    try:
        return run(work)
    except StoreUnavailableError as error:
        fail(f"{error}: {error.reason}", UNAVAILABLE)

"""The command `authsvc`: `serve` and `migrate` run the service, the others are gRPC clients of it.

How they call, print and fail is `console`'s.
"""

import os

# gRPC's core, which reads this as it is imported, would print what is wrong with a connection or an address, at
# length; we say it in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog

from authsvc.cli import calls
from authsvc.cli.calls import shown_list, shown_time
from authsvc.config import ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE
from authsvc.runtime.commands import REFUSED, USAGE, announce, fail
from authsvc.runtime.control_channel import ControlChannel, WorkerSpec
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.logging import configure
from authsvc.runtime.process import (
    ignore_other_signals,
    open_missing_streams,
    stop_at_signals,
    turn_off_core_dumps,
    use_batch_scheduling,
)
from authsvc.runtime.workers import run_workers
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import project_service_pb2 as project_pb2

_log = structlog.get_logger("authsvc")

_FOLLOW_SECONDS = 0.5
_FOLLOWED_FROM = 10
"""So many changes are shown before those that come; the whole history is what nobody waits for."""
_PAGE_SIZE = 100
_KEY_BYTES_MAX = 4096
_project = click.argument("project", type=calls.TEXT)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _number(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Refuse `nan`, which is within every range."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number of seconds")
    return value


_force = click.option(
    "--force",
    is_flag=True,
    help="Admit whole public suffixes, such as *.vercel.app, where anybody can have pages.",
)
_wait = click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 20),
    callback=_number,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for all bridges to confirm.",
)


@click.group(cls=calls.Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deeptracer-auth")
def main() -> None:
    """Issue, revoke and validate the API keys of projects.

    Configured by AUTHSVC_… environment variables: see docs/configuration.md.
    """
    turn_off_core_dumps()
    open_missing_streams()


@main.command()
def serve() -> None:
    """Run the key service until SIGTERM or SIGINT."""
    ignore_other_signals()
    config = calls.read_config()
    configure(config.log_level, config.log_format)
    for variable, path in config.keys_readable_by_all():
        _log.warning("key_readable_by_all", variable=variable, file=str(path))
    if config.is_margin_thin:
        _log.warning("lease_margin_thin", seconds=config.lease_margin_seconds, lease_seconds=config.lease_seconds)

    def started(address: Address) -> None:
        announce(f"authsvc listening address={address} tls={'on' if config.tls_cert else 'off'}")

    if config.workers > 1:
        calls.run(run_workers(config.listen, "AUTHSVC_LISTEN", config.workers, ("worker",), started))
        return
    from authsvc import app  # noqa: PLC0415 - the database libraries, which the other commands do not need

    async def run() -> None:
        await app.serve(config, stop_at_signals(), started)

    use_batch_scheduling()
    calls.run(run())


@main.command(hidden=True)
@click.argument("spec", type=WorkerSpec.parse)
def worker(spec: WorkerSpec) -> None:
    """Be one of the processes of `serve`, which starts it."""
    ignore_other_signals()
    from authsvc import app  # noqa: PLC0415 - as above

    config = msgspec.structs.replace(calls.read_config(), listen=spec.address)
    configure(config.log_level, config.log_format, spec.name)

    async def run() -> None:
        async with ControlChannel(spec) as channel:
            await app.serve(config, stop_at_signals(), lambda _: channel.ready(), channel=channel)

    use_batch_scheduling()
    calls.run(run())


@main.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    from authsvc import app  # noqa: PLC0415 - as above

    before, after = calls.run(app.migrate(calls.read_config()))
    done = (
        f"is at version {after} already" if before == after else f"is now at version {after}, was {before or 'empty'}"
    )
    calls.note(f"the schema {done}")


@main.command(short_help="Make a small CA and certificates to try TLS with.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def dev_certs(directory: Path) -> None:
    """Make a small CA, and certificates for this machine and a client, in DIR; print the variables that use them."""
    from authsvc.cli import dev_certs as certificates  # noqa: PLC0415 - the cryptography library, which nothing else needs

    os.umask(0o077)
    try:
        certificates.write(directory, datetime.now(UTC))
    except ConfigurationError as error:
        fail(str(error), USAGE)
    click.echo(
        f"wrote certificates, keys and {certificates.VARIABLES_FILE} to {directory}; not for production", err=True
    )
    calls.show(certificates.exports(directory), ends_line=False)


@main.command(short_help="Create a project's key, and print it.")
@_project
@click.option(
    "--origin",
    "origins",
    type=calls.TEXT,
    multiple=True,
    metavar="ENTRY",
    help="Admit this browser origin; repeatable.",
)
@_force
@_wait
@_as_json
def issue(project: str, origins: Sequence[str], force: bool, wait_seconds: float, as_json: bool) -> None:
    """Create PROJECT's key, and PROJECT if it is new; print the API key, which is shown this once."""
    wait = calls.duration(wait_seconds)
    request = pb.IssueRequest(project_id=project, origins=origins, wait=wait, allow_public_suffix=force)
    again = [word for origin in origins for word in ("--origin", origin)] + ["--force"] * force
    answer, seconds = calls.ask_timed(lambda api: api.keys.Issue(request, **api.options), "issue", project, *again)
    calls.note(f"issued {answer.key.key_id} for project {project}; origins: {shown_list(answer.origins)}")
    calls.show_key(project, answer, as_json, calls.by_when("in force", answer.propagation, seconds))


@main.command(short_help="Revoke a project's key, and print its next one.")
@_project
@click.option(
    "--key-id", type=calls.TEXT, help="The key to revoke; without it, the active one, which is read and shown first."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_wait
@_as_json
def revoke(project: str, key_id: str | None, yes: bool, wait_seconds: float, as_json: bool) -> None:
    """Revoke PROJECT's key; print its next API key, which is shown this once."""
    # The id is always sent: what is asked about is what is revoked, and a retry cannot revoke the next key.
    if key_id is None:
        request = project_pb2.GetProjectRequest(project_id=project)
        key_id = calls.ask(lambda api: api.projects.GetProject(request, **api.options)).project.active_key.key_id
    if not yes and not click.confirm(f"Revoke {key_id} of project {project}? Its senders stop working.", err=True):
        fail("nothing was revoked", REFUSED)
    revocation = pb.RevokeRequest(project_id=project, key_id=key_id, wait=calls.duration(wait_seconds))
    answer, seconds = calls.ask_timed(
        lambda api: api.keys.Revoke(revocation, **api.options), "revoke", project, "--key-id", key_id
    )
    by_when = calls.by_when("dead", answer.propagation, seconds)
    if not answer.already_revoked:
        calls.note(f"revoked {key_id} of project {project}; its next key is {answer.key.key_id}")
        calls.show_key(project, answer, as_json, by_when)
        return
    when = shown_time(answer.revoked_key.revoke_time)
    unseen = f"if its next key was not shown to you, 'authsvc revoke {project}' replaces it"
    calls.note(f"{key_id} was revoked already, at {when}; nothing was changed; {unseen}\n{by_when}")
    if as_json:
        calls.print_json(answer)


@main.command(short_help="Show or set the browser origins of a project.")
@_project
@click.argument("entries", type=calls.TEXT, nargs=-1, metavar="[ENTRY]...")
@click.option("--any", "any_origin", is_flag=True, help="Admit every origin: empty the list.")
@_force
@_wait
@_as_json
def origins(
    project: str, entries: Sequence[str], any_origin: bool, force: bool, wait_seconds: float, as_json: bool
) -> None:
    """Show the browser origins that PROJECT admits, or set them to the entries given."""
    if entries and any_origin:
        raise click.UsageError("give entries or --any, not both")
    answer: Any
    if entries or any_origin:
        wait = calls.duration(wait_seconds)
        change = pb.SetOriginsRequest(project_id=project, origins=entries, wait=wait, allow_public_suffix=force)
        again = [*(entries or ("--any",)), *["--force"] * force]
        answer, seconds = calls.ask_timed(
            lambda api: api.keys.SetOrigins(change, **api.options), "origins", project, *again
        )
        if answer.already_set:
            calls.note(f"project {project} admitted these already; nothing was changed")
        calls.note(calls.by_when("in force", answer.propagation, seconds))
        admitted = answer.origins
    else:
        request = project_pb2.GetProjectRequest(project_id=project)
        answer = calls.ask(lambda api: api.projects.GetProject(request, **api.options)).project
        admitted = answer.origins
    if as_json:
        calls.print_json({"origins": list(admitted)})
    elif admitted:
        calls.show("\n".join(admitted))
    else:
        calls.note(f"project {project} admits every origin")


def _read_key() -> str:
    key: str | bytes | None = os.environ.get("AUTHSVC_API_KEY")
    if not key and sys.stdin.isatty():
        key = click.prompt("API key", hide_input=True, err=True)
    if not key:
        key = sys.stdin.buffer.readline(_KEY_BYTES_MAX + 1)
    if len(key) > _KEY_BYTES_MAX:
        return ""  # no key, and not sent either: it may be a file without an end
    text = key if isinstance(key, str) else key.decode(errors="replace")
    return text.encode(errors="replace").decode().strip()  # what is not UTF-8 is not a key either


@main.command(short_help="Say whether a key may be used.")
@click.option("--origin", type=calls.TEXT, help="As if a browser's page of this origin sent the key.")
@_as_json
def validate(origin: str | None, as_json: bool) -> None:
    """Say whether a key may be used: the one in AUTHSVC_API_KEY, or else on standard input."""
    request = pb.ValidateRequest(api_key=_read_key(), origin=origin)
    answer = calls.ask(
        lambda api: api.keys.Validate(request, **api.options), role_files=(ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE)
    )
    if as_json:
        calls.print_json(answer)
    else:
        whose = f" key={answer.key_id} project={answer.project_id}" if answer.key_id else ""
        calls.show(pb.Verdict.Name(answer.verdict).removeprefix("VERDICT_").lower().replace("_", " ") + whose)
    if answer.verdict != pb.VERDICT_ALLOWED:
        sys.exit(REFUSED)


@main.command()
@_as_json
def projects(as_json: bool) -> None:
    """List the projects."""

    async def read(api: calls.Api) -> list[Any]:
        return await calls.pages(
            lambda token: api.projects.ListProjects(project_pb2.ListProjectsRequest(page_token=token), **api.options),
            "projects",
        )

    found = calls.ask(read)
    if as_json:
        calls.print_json(found)
        return
    calls.print_table(
        ("PROJECT", "KEY", "ISSUED", "ORIGINS"),
        [
            (
                p.project_id,
                p.active_key.key_id,
                shown_time(p.active_key.create_time),
                shown_list(p.origins),
            )
            for p in found
        ],
        "there are no projects yet: authsvc issue PROJECT makes one",
    )


@main.command()
@_project
@_as_json
def keys(project: str, as_json: bool) -> None:
    """List PROJECT's keys, newest first."""

    async def read(api: calls.Api) -> list[Any]:
        return await calls.pages(
            lambda token: api.projects.ListKeys(
                project_pb2.ListKeysRequest(project_id=project, page_token=token), **api.options
            ),
            "keys",
        )

    found = calls.ask(read)
    if as_json:
        calls.print_json(found)
        return
    rows = [
        (
            k.key_id,
            shown_time(k.create_time),
            shown_time(k.revoke_time) if k.HasField("revoke_time") else "active",
        )
        for k in found
    ]
    calls.print_table(("KEY", "ISSUED", "REVOKED"), rows, "there are no keys")


@main.command(short_help="List who may use cached verdicts, until when.")
@_as_json
def holders(as_json: bool) -> None:
    """List who may use cached verdicts: how far behind each is, and until when."""
    answer = calls.ask(lambda api: api.operations.ListHolders(operations_pb2.ListHoldersRequest(), **api.options))
    if as_json:
        calls.print_json(answer)
        return
    now = answer.now.ToDatetime(UTC)
    rows = []
    for holder in answer.holders:
        is_known = holder.epoch == answer.epoch and holder.acknowledged_revision <= answer.revision
        behind = str(answer.revision - holder.acknowledged_revision) if is_known else "reset"
        left = holder.lease_expire_time.ToDatetime(UTC) - now
        state = "expired" if left < timedelta() else f"{left.seconds} s left"
        lease = f"{shown_time(holder.lease_expire_time)} ({state})"
        rows.append(
            (calls.plain(holder.name), calls.plain(holder.holder_id), behind, lease, shown_time(holder.renew_time))
        )
    calls.print_table(("NAME", "HOLDER", "BEHIND", "LEASE UNTIL", "LAST RENEWED"), rows, "nobody holds a lease")


@main.command(short_help="Show the audit trail.")
@click.option("--project", type=calls.TEXT, help="Only this project's.")
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Begin with the last N.")
@click.option("--after", type=click.IntRange(min=0), metavar="REVISION", help="Begin after this revision; 0: with all.")
@click.option(
    "--follow", is_flag=True, help=f"Go on, showing changes as they are made. Begins with the last {_FOLLOWED_FROM}."
)
@_as_json
def changes(project: str | None, last: int | None, after: int | None, follow: bool, as_json: bool) -> None:
    """Show the audit trail: every issue, revoke and change of origins, oldest first."""
    if last is not None and after is not None:
        raise click.UsageError("give --last or --after, not both")
    if last is None and after is None and follow:
        last = _FOLLOWED_FROM

    async def show(api: calls.Api) -> None:
        after_revision = after or 0
        if last is not None:
            after_revision, latest = await _latest_changes(api, project or "", last)
            _show_changes(latest, as_json)
        while True:
            request = operations_pb2.ListChangesRequest(after_revision=after_revision, project_id=project or "")
            call = partial(api.operations.ListChanges, request, **api.options)
            page = (await (calls.answered(call) if follow else call())).changes
            _show_changes(page, as_json)
            if page:
                after_revision = page[-1].revision
            elif not follow:
                return
            else:
                await asyncio.sleep(_FOLLOW_SECONDS)

    with suppress(KeyboardInterrupt):
        calls.ask(show)


async def _latest_changes(api: calls.Api, project: str, count: int) -> tuple[int, list[Any]]:
    """Return the revision of the latest change, and so many up to it, oldest first."""
    latest: list[Any] = []
    newest = before = 0
    while not newest or (before > 1 and len(latest) < count):
        request = operations_pb2.ListChangesRequest(
            project_id=project, before_revision=before, newest_first=True, page_size=_PAGE_SIZE
        )
        page = (await api.operations.ListChanges(request, **api.options)).changes
        if not page:
            break
        latest += page
        newest, before = newest or page[0].revision, page[-1].revision
    return newest, latest[:count][::-1]


def _show_changes(changes: Sequence[Any], as_json: bool) -> None:
    for change in changes:
        if as_json:
            calls.print_json_line(change)
            continue
        keys = f"  {change.key_id}" if change.key_id else ""
        if change.revoked_key_id:
            keys = f"  {change.revoked_key_id}, next {change.key_id}"
        what = f"{change.kind:<11}  {change.project_id}{keys}  by {calls.plain(change.caller)}"
        calls.show(f"{change.revision:>6}  {shown_time(change.create_time)}  {what}")


@main.command(short_help="Make every bridge forget its cached verdicts.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def renew_epoch(yes: bool) -> None:
    """Make every bridge forget its cached verdicts: after the database was restored or failed over.

    Works on the database itself, like migrate.
    """
    from authsvc import app  # noqa: PLC0415 - the database libraries, which the other commands do not need

    if not yes and not click.confirm("Every bridge asks anew about each key. Go on?", err=True):
        fail("nothing was changed", REFUSED)
    calls.run(app.renew_epoch(calls.read_config()))
    calls.note("the database has a new epoch")

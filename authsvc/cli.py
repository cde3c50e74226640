"""The command `authsvc`: `serve` and `migrate` run the service, the others are gRPC clients of it.

Exit status: 0; 1 refused, by the service or by the user; 2 wrong usage or
configuration; 3 the service, or its database, is out of reach.
"""

import os

# Its core would print what is wrong with a connection or an address, at length; we say it in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import getpass
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any, NoReturn, TypeVar

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.channel import ClientTls, FixedToken, TokenFile, TokenSource, authorization, open_channel
from authsvc.client.diagnosis import diagnose
from authsvc.client.environment import Address, ConfigurationError
from authsvc.client.event_log import configure
from authsvc.config import ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE, Config
from authsvc.errors import StoreUnavailableError
from protos.authsvc.v1 import key_service_pb2 as pb
from protos.authsvc.v1 import key_service_pb2_grpc as pb_grpc

_T = TypeVar("_T")

_REFUSED, _USAGE, _OUT_OF_REACH = 1, 2, 3
_DEADLINE_SECONDS = 10.0
# CANCELLED: gRPC's answer to what a service that is being stopped has read and not begun.
_OUT_OF_REACH_STATUS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deeptracer-auth")
def main() -> None:
    """Issue, revoke and validate the API keys of projects.

    Configured by AUTHSVC_… environment variables: see docs/configuration.md.
    """


@main.command()
def serve() -> None:
    """Run the key service until SIGTERM or SIGINT."""
    from authsvc import app  # noqa: PLC0415 - the database libraries, which the other commands do not need

    config = _config()
    configure(config.log_level, config.log_format)

    def started(address: Address) -> None:
        click.echo(f"authsvc listening address={address} tls={'on' if config.tls_cert else 'off'}")

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await app.serve(config, stop, started)

    _run(run())


@main.command()
def migrate() -> None:
    """Bring the database to this version's schema."""
    from authsvc import app  # noqa: PLC0415 - as above

    before, after = _run(app.migrate(_config()))
    done = (
        f"is at version {after} already" if before == after else f"is now at version {after}, was {before or 'empty'}"
    )
    click.echo(f"the schema {done}", err=True)


@main.command()
@click.argument("project")
@click.option("--origin", "origins", multiple=True, metavar="ENTRY", help="Admit this browser origin; repeatable.")
@_as_json
def issue(project: str, origins: Sequence[str], as_json: bool) -> None:
    """Create PROJECT's key, and PROJECT if it is new; print the raw key, which is shown this once."""
    answer = _ask(lambda api: api.keys.Issue(pb.IssueRequest(project_id=project, origins=origins), **api.options))
    _show_key(answer, as_json, f"issued {answer.key.key_id} for project {project}; origins: {_list(answer.origins)}")


@main.command()
@click.argument("project")
@click.option("--key-id", help="The key to revoke; without it, the active one, which is read and shown first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def revoke(project: str, key_id: str | None, yes: bool, as_json: bool) -> None:
    """Revoke PROJECT's key; print its next raw key, which is shown this once."""
    # The id is always sent: what is asked about is what is revoked, and a retry cannot revoke the next key.
    if key_id is None:
        request = pb.GetProjectRequest(project_id=project)
        key_id = _ask(lambda api: api.projects.GetProject(request, **api.options)).project.active_key.key_id
    if not yes and not click.confirm(f"Revoke {key_id} of project {project}? Its senders stop working.", err=True):
        _fail("nothing was revoked", _REFUSED)
    revocation = pb.RevokeRequest(project_id=project, key_id=key_id)
    answer = _ask(lambda api: api.keys.Revoke(revocation, **api.options))
    if answer.already_revoked:
        when = _time(answer.revoked_key.revoke_time)
        click.echo(f"{key_id} was revoked already, at {when}; nothing was changed", err=True)
        if as_json:
            _print_json(answer)
        return
    _show_key(answer, as_json, f"revoked {key_id} of project {project}; its next key is {answer.key.key_id}")


@main.command()
@click.argument("project")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@click.option("--any", "any_origin", is_flag=True, help="Admit every origin: empty the list.")
@_as_json
def origins(project: str, entries: Sequence[str], any_origin: bool, as_json: bool) -> None:
    """Show the browser origins that PROJECT admits, or set them to the entries given."""
    if entries and any_origin:
        raise click.UsageError("give entries or --any, not both")
    answer: Any
    if entries or any_origin:
        change = pb.SetOriginsRequest(project_id=project, origins=entries)
        answer = _ask(lambda api: api.keys.SetOrigins(change, **api.options))
        admitted = answer.origins
    else:
        request = pb.GetProjectRequest(project_id=project)
        answer = _ask(lambda api: api.projects.GetProject(request, **api.options)).project
        admitted = answer.origins
    if as_json:
        _print_json({"origins": list(admitted)})
    elif admitted:
        click.echo("\n".join(admitted))
    else:
        click.echo(f"project {project} admits every origin", err=True)


@main.command()
@click.option("--origin", help="As if a browser's page of this origin sent the key.")
@_as_json
def validate(origin: str | None, as_json: bool) -> None:
    """Say whether a key may be used: the one in AUTHSVC_API_KEY, or else on standard input."""
    api_key: str | None = os.environ.get("AUTHSVC_API_KEY")
    if not api_key and sys.stdin.isatty():
        api_key = click.prompt("API key", hide_input=True, err=True)
    request = pb.ValidateRequest(api_key=(api_key or sys.stdin.readline()).strip(), origin=origin)
    answer = _ask(
        lambda api: api.keys.Validate(request, **api.options), role_files=(ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE)
    )
    if as_json:
        _print_json(answer)
    else:
        whose = f" key={answer.key_id} project={answer.project_id}" if answer.key_id else ""
        click.echo(pb.Verdict.Name(answer.verdict).removeprefix("VERDICT_").lower().replace("_", " ") + whose)
    if answer.verdict != pb.VERDICT_ALLOWED:
        sys.exit(_REFUSED)


@main.command()
@_as_json
def projects(as_json: bool) -> None:
    """List the projects."""

    async def read(api: _Api) -> list[Any]:
        return await _pages(
            lambda token: api.projects.ListProjects(pb.ListProjectsRequest(page_token=token), **api.options), "projects"
        )

    found = _ask(read)
    if as_json:
        _print_json(found)
        return
    _print_table(
        ("PROJECT", "KEY", "ISSUED", "ORIGINS"),
        [(p.project_id, p.active_key.key_id, _time(p.active_key.create_time), _list(p.origins)) for p in found],
        "there are no projects yet: authsvc issue PROJECT makes one",
    )


@main.command()
@click.argument("project")
@_as_json
def keys(project: str, as_json: bool) -> None:
    """List PROJECT's keys, newest first."""

    async def read(api: _Api) -> list[Any]:
        return await _pages(
            lambda token: api.projects.ListKeys(
                pb.ListKeysRequest(project_id=project, page_token=token), **api.options
            ),
            "keys",
        )

    found = _ask(read)
    if as_json:
        _print_json(found)
        return
    rows = [
        (k.key_id, _time(k.create_time), _time(k.revoke_time) if k.HasField("revoke_time") else "active") for k in found
    ]
    _print_table(("KEY", "ISSUED", "REVOKED"), rows, "there are no keys")


class _Api:
    """The service's stubs, and what every call to them carries."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self.keys: Any = pb_grpc.KeyServiceStub(channel)
        self.projects: Any = pb_grpc.ProjectServiceStub(channel)
        self.options: dict[str, Any] = {"timeout": _DEADLINE_SECONDS, "metadata": metadata}


def _ask(call: Callable[[_Api], Any], role_files: Sequence[str] = (ADMIN_TOKEN_FILE,)) -> Any:
    """Make a call, or several, as the first role whose token is at hand; end the process when that fails."""
    config = _config()

    async def run() -> Any:
        async with _connected(config, role_files) as api:
            return await call(api)

    return _run(run())


@asynccontextmanager
async def _connected(config: Config, role_files: Sequence[str]) -> AsyncIterator[_Api]:
    tls = None
    if config.ca or config.client_cert:
        variables = ("AUTHSVC_CA", "AUTHSVC_CLIENT_CERT", "AUTHSVC_CLIENT_KEY")
        tls = ClientTls(config.ca, config.client_cert, config.client_key, variables)
    address = config.service_address()
    metadata = (*authorization(_token(config, role_files).read()), ("x-authsvc-caller", _user()))
    async with open_channel(address, tls) as channel:
        try:
            yield _Api(channel, metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in _OUT_OF_REACH_STATUS:
                reason = await diagnose(address, tls, 2.0) or error.details()
                raise KeyServiceUnavailableError(f"the key service is out of reach: {reason}") from None
            raise


def _token(config: Config, role_files: Sequence[str]) -> TokenSource:
    configured = {ADMIN_TOKEN_FILE: config.admin_token, BRIDGE_TOKEN_FILE: config.bridge_token}
    for file in role_files:
        if (token := configured[file]) is not None:
            return FixedToken(token)
    for file in role_files:
        if (config.state_dir / file).exists():
            return TokenFile(config.state_dir / file)
    return TokenFile(config.state_dir / role_files[0])  # whose absence is explained when it is read


def _user() -> str:
    try:
        return getpass.getuser().encode("ascii", "replace").decode()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


async def _pages(call: Callable[[str], Any], field: str) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        page = await call(token)
        found += getattr(page, field)
        if not (token := page.next_page_token):
            return found


def _config() -> Config:
    try:
        return Config.from_environment(os.environ)
    except ConfigurationError as error:
        _fail(str(error), _USAGE)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end; what goes wrong is one line and an exit status."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(work)
    except ConfigurationError as error:
        _fail(str(error), _USAGE)
    except KeyServiceUnavailableError as error:
        _fail(str(error), _OUT_OF_REACH)
    except StoreUnavailableError as error:
        # The driver's own words name hosts, users and files, never a password.
        reason = str(getattr(error.__cause__, "orig", None) or error.__cause__ or "").partition("\n")[0]
        _fail(f"{error}: {reason}" if reason else str(error), _OUT_OF_REACH)
    except grpc.aio.AioRpcError as error:
        _fail(f"{error.details()} ({error.code().name})", _REFUSED)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - an optional extra
    except ImportError:
        return None
    return uvloop.new_event_loop


def _fail(reason: str, status: int) -> NoReturn:
    click.echo(f"authsvc: {reason}", err=True)
    sys.exit(status)


def _show_key(answer: Any, as_json: bool, what: str) -> None:
    """Print the raw key alone on standard output, for `KEY=$(authsvc issue demo)`."""
    click.echo(what, err=True)
    if as_json:
        _print_json(answer)
    else:
        click.echo(answer.api_key)


def _print_json(value: Any) -> None:
    def plain(item: Any) -> Any:
        return MessageToDict(item, preserving_proto_field_name=True) if hasattr(item, "DESCRIPTOR") else item

    shown = [plain(item) for item in value] if isinstance(value, list) else plain(value)
    click.echo(json.dumps(shown, indent=2))


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str) -> None:
    if not rows:
        click.echo(empty, err=True)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _list(entries: Sequence[str]) -> str:
    return ", ".join(entries) or "any"


def _time(value: Timestamp) -> str:
    return value.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%SZ")

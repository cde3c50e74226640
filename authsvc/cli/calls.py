"""What the commands of `cli` share: calling the service, printing, and failing with one line and an exit status.

Exit status: 0, and those of `client.commands`; 3 also where it is not known whether a change was made.
"""

import asyncio
import getpass
import json
import os
import random
import shlex
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import Any, TypeVar

import click
import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.channel import ClientTls, Metadata, TokenFile, authorization, naming, open_channel
from authsvc.client.diagnosis import diagnose
from authsvc.config import ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE, Config, token_variable
from authsvc.errors import StoreUnavailableError
from authsvc.runtime import commands
from authsvc.runtime.commands import OUT_OF_REACH, REFUSED, USAGE, OutputError, fail
from authsvc.runtime.environment import ConfigurationError, Secret
from authsvc.runtime.process import discard
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from authsvc.v1 import operations_service_pb2_grpc as operations_pb2_grpc
from authsvc.v1 import project_service_pb2_grpc as project_pb2_grpc

_T = TypeVar("_T")

_DEADLINE_SECONDS = 30.0
_AGAIN_SECONDS_MAX = 2.0
_NAMED_MAX = 5  # holders in one line
# CANCELLED: gRPC's answer to what a service that is being stopped has read and not begun.
_OUT_OF_REACH_STATUS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_TOKEN_REFUSED_STATUS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# Nothing was done. Any other status may follow a commit: an error of the service, or a stream that a proxy reset.
_REFUSED_STATUS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)


class _RefusedError(Exception):
    """The service's refusal; the message is one line for the user."""


class _FailedError(_RefusedError):
    """A call failed, and whether it did anything is not known."""


class _UnansweredError(KeyServiceUnavailableError):
    """A call was sent, and whether it did anything is not known."""


class Commands(commands.Commands):
    """The commands, whose output may be in any encoding."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        _escape_what_cannot_be_encoded()
        return super().invoke(ctx)


def _escape_what_cannot_be_encoded() -> None:
    """Let standard output take any text that a caller chose, as Python's standard error does."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class Text(click.ParamType[str]):
    """An argument that can be sent: the bytes of the terminal need not be UTF-8, those of a message must."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value; refuse one that is not UTF-8."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value.encode('utf-8', 'replace').decode()!r} is not UTF-8", param, ctx)
        return value


TEXT = Text()


class Api:
    """The service's stubs, and what every call to them carries."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.keys: Any = pb_grpc.KeyServiceStub(channel)
        self.projects: Any = project_pb2_grpc.ProjectServiceStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        self.options: dict[str, Any] = {"timeout": _DEADLINE_SECONDS, "metadata": metadata}


def ask(call: Callable[[Api], Any], role_files: Sequence[str] = (ADMIN_TOKEN_FILE,), again: Sequence[str] = ()) -> Any:
    """Make a call, or several, as the first role whose token is at hand; end the process when that fails.

    `again` are the arguments with which a change can be asked for once more, whether or not it was made.
    """
    config = read_config()

    async def connected_call() -> Any:
        try:
            async with _connected(config, role_files) as api:
                return await call(api)
        except (_UnansweredError, _FailedError) as error:
            if not again:
                raise
            raise KeyServiceUnavailableError(_maybe_made(error, again)) from None

    try:
        return run(connected_call())
    except KeyboardInterrupt:
        if not again:
            raise
        fail(_maybe_made("interrupted", again), OUT_OF_REACH)


def _maybe_made(reason: object, again: Sequence[str]) -> str:
    return f"{reason}; the change may have been made; ask again: {shlex.join(('authsvc', *again))}"


def ask_timed(call: Callable[[Api], Any], *again: str) -> tuple[Any, float]:
    """Make a change, which `again` would ask for once more; return the answer, and how many seconds it took."""

    async def timed(api: Api) -> tuple[Any, float]:
        started = time.monotonic()
        return await call(api), time.monotonic() - started

    answer: tuple[Any, float] = ask(timed, again=again)
    return answer


@asynccontextmanager
async def _connected(config: Config, role_files: Sequence[str]) -> AsyncIterator[Api]:
    config.check_connection()
    tls = None
    for variable, path in config.keys_readable_by_all():
        note(f"authsvc: {variable}: everybody can read {path}")
    if config.ca is not None:
        variables = ("AUTHSVC_CA", "AUTHSVC_CLIENT_CERT", "AUTHSVC_CLIENT_KEY")
        tls = ClientTls(config.ca, config.client_cert, config.client_key, variables)
    address = config.service_address()
    token, source = _token(config, role_files)
    metadata = (*authorization(token), *naming(_user()))
    async with open_channel(address, tls) as channel:
        if not await _connect(channel):
            reason = await diagnose(address, tls, 2.0) or f"{address} cannot be connected to"
            raise KeyServiceUnavailableError(f"the key service is unavailable: {reason}")
        try:
            yield Api(channel, metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in _OUT_OF_REACH_STATUS:  # no diagnosis: TLS and all else were right a moment ago
                raise _UnansweredError(f"the key service is unavailable: {error.details()}") from None
            if error.code() in _TOKEN_REFUSED_STATUS:
                raise _RefusedError(f"{_shown(error)}; the token that was sent is the one in {source}") from None
            if error.code() in _REFUSED_STATUS:
                raise _RefusedError(_shown(error)) from None
            raise _FailedError(_shown(error)) from None


async def _connect(channel: grpc.aio.Channel) -> bool:
    """Return whether a connection came about: from then on, a call that fails may have been sent."""
    state = channel.get_state(try_to_connect=True)
    while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return state is grpc.ChannelConnectivity.READY


def _shown(error: grpc.aio.AioRpcError) -> str:
    return f"{error.details()} ({error.code().name})"


def _token(config: Config, role_files: Sequence[str]) -> tuple[Secret, str]:
    """Return the token of the first role that has one, and where it comes from, in the operator's words."""
    configured = {ADMIN_TOKEN_FILE: config.admin_token, BRIDGE_TOKEN_FILE: config.bridge_token}
    for file in role_files:
        if (token := configured[file]) is not None:
            return token, token_variable(file)
    reasons = []
    for file in role_files:
        path = config.state_dir / file
        try:
            return TokenFile(path, is_private=True).read(), str(path)
        except KeyServiceUnavailableError as error:
            reasons.append(error)
    raise ConfigurationError(
        f"{reasons[0]}. Set AUTHSVC_STATE_DIR to the key service's state directory, or {token_variable(role_files[0])}"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


async def pages(call: Callable[[str], Any], field: str) -> list[Any]:
    """Read all pages of a list."""
    found: list[Any] = []
    token = ""
    while True:
        page = await call(token)
        found += getattr(page, field)
        if not (token := page.next_page_token):
            return found


async def answered(call: Callable[[], Awaitable[_T]]) -> _T:
    """Make a call until it is answered; that the service is unavailable is said once, and it is tried again."""
    is_lost = False
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _OUT_OF_REACH_STATUS:
                raise
            if not is_lost:
                note(f"authsvc: the key service is unavailable, trying again: {error.details()}")
            is_lost = True
        await asyncio.sleep(random.uniform(0.5, 1.0) * _AGAIN_SECONDS_MAX)  # noqa: S311 - jitter


def read_config() -> Config:
    """Read the environment; end the process when a variable is wrong."""
    try:
        return Config.from_environment(os.environ)
    except ConfigurationError as error:
        fail(str(error), USAGE)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end; what goes wrong is one line and an exit status."""
    try:
        return commands.run(work)
    except KeyServiceUnavailableError as error:
        fail(str(error), OUT_OF_REACH)
    except StoreUnavailableError as error:
        fail(f"{error}: {error.reason}", OUT_OF_REACH)
    except _RefusedError as error:
        fail(str(error), REFUSED)


def by_when(what: str, propagation: pb.Propagation, seconds: float) -> str:
    """Say in one line by when a change holds everywhere, and whom that depends on."""
    if propagation.effective:
        count = propagation.confirmed_count
        if not count:
            return f"{what} everywhere: no bridge holds a lease"
        return (
            f"{what} everywhere, {count} {'bridge' if count == 1 else 'bridges'} confirmed in {seconds * 1000:.0f} ms"
        )
    by = f"{what} at {_whole_second(propagation.effective_by):%H:%M:%S}Z at the latest"
    if not propagation.pending:
        return f"{by}: the database could not say who holds leases, or has lost changes and needs 'authsvc renew-epoch'"
    named = propagation.pending[:_NAMED_MAX]
    late = [
        f"{plain(holder.name or holder.holder_id)} has not answered since {holder.renew_time.ToDatetime(UTC):%H:%M:%S}Z"
        for holder in named
    ]
    if more := propagation.pending_count - len(named):
        late.append(f"nor have {more} more")
    return f"{by}: {', '.join(late)}"


def _whole_second(value: Timestamp) -> datetime:
    """Round up: what is promised for an instant is not yet true in the second that it is part of."""
    return datetime.fromtimestamp(value.seconds + bool(value.nanos), UTC)


def show_key(project: str, answer: Any, as_json: bool, by_when: str) -> None:
    """Print the API key alone on standard output, for `KEY=$(authsvc issue demo)`."""
    note(by_when)
    try:
        click.echo(_as_json(answer) if as_json else answer.api_key)
    except OSError as error:
        raise OutputError(
            f"standard output: {error.strerror}: the API key of {answer.key.key_id}, which is in force, is lost; "
            f"'authsvc revoke {project}' replaces it"
        ) from None


def show(text: str, *, ends_line: bool = True) -> None:
    """Print on standard output."""
    try:
        click.echo(text, nl=ends_line)
    except BrokenPipeError:  # click ends the process without a word, as others do whose reader has gone
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}") from None


def note(text: str) -> None:
    """Tell the user beside the output; where that cannot be written, the output still counts."""
    try:
        click.echo(text, err=True)
    except OSError:
        discard(sys.stderr)


def print_json(value: Any) -> None:
    """Print messages, or what is JSON already."""
    show(_as_json(value))


def print_json_line(message: Message) -> None:
    """Print a message on a line of its own."""
    show(json.dumps(_json(message)))


def _as_json(value: Any) -> str:
    return json.dumps([_json(item) for item in value] if isinstance(value, list) else _json(value), indent=2)


def _json(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    # Empty and false fields too, so that what reads it finds every name.
    return MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str) -> None:
    """Print rows under a header; when there are none, say so on standard error."""
    if not rows:
        note(empty)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shown_list(entries: Sequence[str]) -> str:
    """Return an origin list for a line of text."""
    return ", ".join(entries) or "any"


def plain(text: str) -> str:
    """Return a text that a caller chose, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def duration(seconds: float) -> Duration:
    """Return a Duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def shown_time(value: Timestamp) -> str:
    """Return an instant for people, in UTC."""
    return value.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%SZ")

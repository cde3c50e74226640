"""Calling the key service: as whom, over which connection, and how a call that fails ends the command.

Exit status: those of `runtime.commands`; 3 also where it is not known whether a change was made.
"""

import asyncio
import os
import random
import shlex
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, TypeVar

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.admin import AdminClient, CallError, RefusedError
from authsvc.client.channel import ClientTls, TokenFile, TokenSource
from authsvc.config import ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE, Config, token_variable
from authsvc.runtime.commands import REFUSED, UNAVAILABLE, fail, note, run
from authsvc.runtime.environment import ConfigurationError, Secret

_T = TypeVar("_T")

_DEADLINE_SECONDS = 30.0
_AGAIN_SECONDS_MAX = 2.0


def ask(
    call: Callable[[AdminClient], Awaitable[_T]],
    role_files: Sequence[str] = (ADMIN_TOKEN_FILE,),
    again: Sequence[str] = (),
) -> _T:
    """Make a call, or several, as the first role whose token is at hand; end the process when that fails.

    `again` are the arguments with which a change can be asked for once more, whether or not it was made.
    """
    config = Config.from_environment(os.environ)
    config.check_connection()
    for variable, path in config.keys_readable_by_all():
        note(f"authsvc: {variable}: everybody can read {path}")
    variables = ("AUTHSVC_CA", "AUTHSVC_CLIENT_CERT", "AUTHSVC_CLIENT_KEY")
    tls = ClientTls(config.ca, config.client_cert, config.client_key, variables) if config.ca else None
    token, source = _token(config, role_files)

    async def connected_call() -> _T:
        admin = AdminClient(config.service_address(), TokenSource(token), tls, _DEADLINE_SECONDS)
        try:
            return await call(admin)
        finally:
            await admin.close()

    try:
        return run(connected_call())
    except KeyboardInterrupt:
        if not again:
            raise
        _fail_maybe_made("interrupted", again)
    except RefusedError as error:
        fail(f"{error} ({error.status})", REFUSED)
    except CallError as error:
        if error.is_token_refused:
            fail(f"{_shown(error)}; the token that was sent is the one in {source}", REFUSED)
        if again and not error.is_refused:
            _fail_maybe_made(_shown(error), again)
        fail(_shown(error), UNAVAILABLE if error.is_unavailable else REFUSED)
    except KeyServiceUnavailableError as error:
        fail(f"the key service is unavailable: {error}", UNAVAILABLE)


def _shown(error: CallError) -> str:
    """Return what gRPC says, rather than what may be wrong with the connection: it was all right a moment ago."""
    if error.is_unavailable:
        return f"the key service is unavailable: {error.details}"
    return f"{error.details} ({error.status})"


def _fail_maybe_made(reason: str, again: Sequence[str]) -> NoReturn:
    fail(f"{reason}; the change may have been made; ask again: {shlex.join(('authsvc', *again))}", UNAVAILABLE)


def ask_timed(call: Callable[[AdminClient], Awaitable[_T]], *again: str) -> tuple[_T, float]:
    """Make a change, which `again` would ask for once more; return the response, and how many seconds it took."""

    async def timed(admin: AdminClient) -> tuple[_T, float]:
        started = time.monotonic()
        return await call(admin), time.monotonic() - started

    return ask(timed, again=again)


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


async def all_pages(read: Callable[..., Awaitable[tuple[Sequence[_T], str]]]) -> list[_T]:
    """Read all pages of a list; `read` takes the token of a page, and returns the page and the next one's token."""
    page, token = await read()
    found = [*page]
    while token:
        page, token = await read(page_token=token)
        found += page
    return found


async def until_answered(call: Callable[[], Awaitable[_T]]) -> _T:
    """Make a call until it is answered; that the service is unavailable is said once, and it is tried again."""
    is_lost = False
    while True:
        try:
            return await call()
        except KeyServiceUnavailableError as error:
            if isinstance(error, CallError) and not error.is_unavailable:
                raise
            if not is_lost:
                note(f"authsvc: the key service is unavailable, trying again: {error}")
            is_lost = True
        await asyncio.sleep(random.uniform(0.5, 1.0) * _AGAIN_SECONDS_MAX)  # noqa: S311 - jitter

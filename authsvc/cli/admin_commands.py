"""The commands that call the key service: issue, revoke, origins, validate, projects, keys, holders, changes."""

import asyncio
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, timedelta
from functools import partial

import click

from authsvc.cli.calls import all_pages, ask, ask_timed, until_answered
from authsvc.cli.output import by_when, json_text, show_key, show_table, shown_list, shown_time
from authsvc.client.admin import AdminClient, Change
from authsvc.config import ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE
from authsvc.runtime.commands import REFUSED, TEXT, fail, note, plain, show, user_name
from authsvc.v1 import key_service_pb2 as pb

_FOLLOW_SECONDS = 0.5
_FOLLOWED_FROM = 10
"""So many changes are shown before those that come; the whole history is what nobody waits for."""
_KEY_BYTES_MAX = 4096


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float) -> timedelta:
    """Refuse `nan`, which is within every range."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number of seconds")
    return timedelta(seconds=value)


_project = click.argument("project", type=TEXT)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_force = click.option(
    "--force", is_flag=True, help="Admit whole public suffixes, such as *.vercel.app, where anybody can have pages."
)
_wait = click.option(
    "--wait",
    type=click.FloatRange(0, 20),
    callback=_seconds,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for all bridges to confirm.",
)


@click.command(short_help="Create a project's key, and print it.")
@_project
@click.option(
    "--origin", "origins", type=TEXT, multiple=True, metavar="ENTRY", help="Admit this browser origin; repeatable."
)
@_force
@_wait
@_as_json
def issue(project: str, origins: Sequence[str], force: bool, wait: timedelta, as_json: bool) -> None:
    """Create PROJECT's key, and PROJECT if it is new; print the API key, which is shown this once."""
    again = ["issue", project, *(word for origin in origins for word in ("--origin", origin)), *["--force"] * force]
    response, seconds = ask_timed(
        lambda admin: admin.issue(project, origins, allow_public_suffix=force, wait=wait, caller=user_name()), *again
    )
    note(f"issued {response.key.key_id} for project {project}; origins: {shown_list(response.origins)}")
    note(by_when("in force", response.propagation, seconds))
    show_key(project, response, as_json=as_json)


@click.command(short_help="Revoke a project's key, and print its next one.")
@_project
@click.option(
    "--key-id", type=TEXT, help="The key to revoke; without it, the active one, which is read and shown first."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_wait
@_as_json
def revoke(project: str, key_id: str | None, yes: bool, wait: timedelta, as_json: bool) -> None:
    """Revoke PROJECT's key; print its next API key, which is shown this once."""
    # The id is always sent: what is asked about is what is revoked, and a retry cannot revoke the next key.
    revoked_id = ask(lambda admin: admin.project(project)).active_key.key_id if key_id is None else key_id
    if not yes and not click.confirm(f"Revoke {revoked_id} of project {project}? Its senders stop working.", err=True):
        fail("nothing was revoked", REFUSED)
    again = ("revoke", project, "--key-id", revoked_id)
    response, seconds = ask_timed(
        lambda admin: admin.revoke(project, revoked_id, wait=wait, caller=user_name()), *again
    )
    if response.already_revoked:
        when = shown_time(response.revoked_key.revoke_time)
        unseen = f"if its next key was not shown to you, 'authsvc revoke {project}' replaces it"
        note(f"{revoked_id} was revoked already, at {when}; nothing was changed; {unseen}")
    else:
        note(f"revoked {revoked_id} of project {project}; its next key is {response.key.key_id}")
    note(by_when("dead", response.propagation, seconds))
    if not response.already_revoked:
        show_key(project, response, as_json=as_json)
    elif as_json:
        show(json_text(response))


@click.command(short_help="Show or set the browser origins of a project.")
@_project
@click.argument("entries", type=TEXT, nargs=-1, metavar="[ENTRY]...")
@click.option("--any", "any_origin", is_flag=True, help="Admit every origin: empty the list.")
@_force
@_wait
@_as_json
def origins(
    project: str, entries: Sequence[str], any_origin: bool, force: bool, wait: timedelta, as_json: bool
) -> None:
    """Show the browser origins that PROJECT admits, or set them to the entries given."""
    if entries and any_origin:
        raise click.UsageError("give entries or --any, not both")
    if entries or any_origin:
        again = ["origins", project, *(entries or ["--any"]), *["--force"] * force]
        response, seconds = ask_timed(
            lambda admin: admin.set_origins(project, entries, allow_public_suffix=force, wait=wait, caller=user_name()),
            *again,
        )
        if response.already_set:
            note(f"project {project} admitted these already; nothing was changed")
        note(by_when("in force", response.propagation, seconds))
        admitted = [*response.origins]
    else:
        admitted = [*ask(lambda admin: admin.project(project)).origins]
    if as_json:
        show(json_text({"origins": admitted}))
    elif admitted:
        show("\n".join(admitted))
    else:
        note(f"project {project} admits every origin")


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


@click.command(short_help="Say whether a key may be used.")
@click.option("--origin", type=TEXT, help="As if a browser's page of this origin sent the key.")
@_as_json
def validate(origin: str | None, as_json: bool) -> None:
    """Say whether a key may be used: the one in AUTHSVC_API_KEY, or else on standard input."""
    key = _read_key()
    response = ask(lambda admin: admin.validate(key, origin), role_files=(ADMIN_TOKEN_FILE, BRIDGE_TOKEN_FILE))
    if as_json:
        show(json_text(response))
    else:
        whose = f" key={response.key_id} project={response.project_id}" if response.key_id else ""
        show(pb.Verdict.Name(response.verdict).removeprefix("VERDICT_").lower().replace("_", " ") + whose)
    if response.verdict != pb.VERDICT_ALLOWED:
        sys.exit(REFUSED)


@click.command()
@_as_json
def projects(as_json: bool) -> None:
    """List the projects."""
    found = ask(lambda admin: all_pages(admin.projects))
    rows = [
        (each.project_id, each.active_key.key_id, shown_time(each.active_key.create_time), shown_list(each.origins))
        for each in found
    ]
    none = "there are no projects yet: authsvc issue PROJECT makes one"
    show_table(found, ("PROJECT", "KEY", "ISSUED", "ORIGINS"), rows, none, as_json=as_json)


@click.command()
@_project
@_as_json
def keys(project: str, as_json: bool) -> None:
    """List PROJECT's keys, newest first."""
    found = ask(lambda admin: all_pages(partial(admin.keys, project)))
    rows = [
        (
            key.key_id,
            shown_time(key.create_time),
            shown_time(key.revoke_time) if key.HasField("revoke_time") else "active",
        )
        for key in found
    ]
    show_table(found, ("KEY", "ISSUED", "REVOKED"), rows, "there are no keys", as_json=as_json)


@click.command(short_help="List who may use cached verdicts, until when.")
@_as_json
def holders(as_json: bool) -> None:
    """List who may use cached verdicts: how far behind each is, and until when."""
    response = ask(lambda admin: admin.holders())
    now = response.now.ToDatetime(UTC)
    rows = []
    for holder in response.holders:
        is_known = holder.epoch == response.epoch and holder.acknowledged_revision <= response.revision
        behind = str(response.revision - holder.acknowledged_revision) if is_known else "reset"
        left = holder.lease_expire_time.ToDatetime(UTC) - now
        state = "expired" if left < timedelta() else f"{left.seconds} s left"
        lease = f"{shown_time(holder.lease_expire_time)} ({state})"
        rows.append((plain(holder.name), plain(holder.holder_id), behind, lease, shown_time(holder.renew_time)))
    header = ("NAME", "HOLDER", "BEHIND", "LEASE UNTIL", "LAST RENEWED")
    show_table(response, header, rows, "nobody holds a lease", as_json=as_json)


@click.command(short_help="Show the audit trail.")
@click.option("--project", type=TEXT, default="", help="Only this project's.")
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Begin with the last N.")
@click.option("--after", type=click.IntRange(min=0), metavar="REVISION", help="Begin after this revision; 0: with all.")
@click.option(
    "--follow", is_flag=True, help=f"Go on, showing changes as they are made. Begins with the last {_FOLLOWED_FROM}."
)
@_as_json
def changes(project: str, last: int | None, after: int | None, follow: bool, as_json: bool) -> None:
    """Show the audit trail: every issue, revoke and change of origins, oldest first."""
    if last is not None and after is not None:
        raise click.UsageError("give --last or --after, not both")
    if last is None and after is None and follow:
        last = _FOLLOWED_FROM

    async def show_all(admin: AdminClient) -> None:
        revision = after or 0
        if last is not None:
            revision, latest = await _latest_changes(admin, project, last)
            _show_changes(latest, as_json)
        while True:
            read = partial(admin.changes_after, revision, project_id=project)
            page = await (until_answered(read) if follow else read())
            _show_changes(page, as_json)
            if page:
                revision = page[-1].revision
            elif not follow:
                return
            else:
                await asyncio.sleep(_FOLLOW_SECONDS)

    with suppress(KeyboardInterrupt):
        ask(show_all)


async def _latest_changes(admin: AdminClient, project: str, count: int) -> tuple[int, list[Change]]:
    """Return the revision of the latest change, and so many up to it, oldest first."""
    page, before = await admin.changes(project_id=project)
    latest = [*page]
    while before and len(latest) < count:
        page, before = await admin.changes(project_id=project, before_revision=before)
        latest += page
    return latest[0].revision if latest else 0, latest[:count][::-1]


def _show_changes(changes: Sequence[Change], as_json: bool) -> None:
    for change in changes:
        if as_json:
            show(json_text(change, indent=None))
            continue
        keys = f"  {change.key_id}" if change.key_id else ""
        if change.revoked_key_id:
            keys = f"  {change.revoked_key_id}, next {change.key_id}"
        what = f"{change.kind:<11}  {change.project_id}{keys}  by {plain(change.caller)}"
        show(f"{change.revision:>6}  {shown_time(change.create_time)}  {what}")


ADMIN_COMMANDS = (issue, revoke, origins, validate, projects, keys, holders, changes)

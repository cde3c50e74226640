"""The commands `erase` and `retention`: what goes from the log store, at once or in time."""

import os
import sys
from typing import Any

import click

from authsvc.runtime.commands import TEXT, USAGE, fail, user_name
from httpbridge.cli.running import filter_options, log_filter, project_argument, run_with_store
from httpbridge.config import RETENTION_DAYS_MAX, Config


@click.command
@project_argument
@filter_options
@click.option("--dry-run", is_flag=True, help="Only say how many entries would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(project: str, dry_run: bool, yes: bool, **options: Any) -> None:
    """Erase PROJECT's stored logs, or those that the options select, for good; bridges may go on meanwhile.

    Asks for the project's name first. A whole project also loses what tells batches that are sent again.
    """
    from httpbridge.cli.data_view import erase_logs  # noqa: PLC0415 - the database libraries

    if options["text"] == "" and click.get_current_context().get_parameter_source("text") is not _DEFAULT:
        raise click.BadParameter("an empty text selects everything: leave the option out", param_hint="--text")
    selection = log_filter(project, **options)
    if None not in (selection.since, selection.until) and selection.until <= selection.since:  # type: ignore[operator]
        raise click.BadParameter("this is not after --since", param_hint="--until")
    is_asked = not (yes or dry_run)
    if is_asked and not is_terminal():
        fail("there is no terminal to ask on: say --yes, or look first with --dry-run", USAGE)
    config = Config.from_environment(os.environ)
    work = erase_logs(
        config.store_url(), selection, by=f"cli:{user_name()}", is_dry=dry_run, confirm=_confirm if is_asked else None
    )
    run_with_store(config, work)


_DEFAULT = click.core.ParameterSource.DEFAULT


def is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def _confirm(project_id: str) -> None:
    """Have the project's name typed, or end the command."""
    typed = click.prompt("Type the project's name to erase them", default="", show_default=False, err=True)
    if typed != project_id:
        click.echo("Nothing was erased: this is not the project's name.", err=True)
        raise click.Abort


class _Limit(click.ParamType[int | None]):
    """A number, or a word that means that there is none of the project's own."""

    def __init__(self, word: str, least: int, most: int) -> None:
        self.name = f"N|{word}"
        self._word, self._least, self._most = word, least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number, None for the word."""
        if value == self._word:
            return None
        if not (isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(self._most))
                and self._least <= int(value) <= self._most):  # fmt: skip
            self.fail(
                f"{value!r} is neither a number from {self._least} to {self._most} nor {self._word!r}", param, ctx
            )
        return int(value)


@click.command
@click.argument("project", type=TEXT, required=False)
@click.option(
    "--days",
    type=_Limit("default", 0, RETENTION_DAYS_MAX),
    metavar="N|default",
    help="Keep its logs for N days after receipt, 0: for ever, default: as long as all others.",
)
@click.option(
    "--bytes",
    "bytes_max",
    type=_Limit("none", 1, 2**63 - 1),
    metavar="N|none",
    help="Keep at most N bytes of it, as they are stored.",
)
def retention(project: str | None, days: int | None, bytes_max: int | None) -> None:
    """Show how long logs are kept, or set it for PROJECT. The bridge drops what is older within a minute or two."""
    from httpbridge.cli.data_view import change_retention, show_retention  # noqa: PLC0415 - the database libraries
    from httpbridge.log_store.retention import Retention  # noqa: PLC0415

    config = Config.from_environment(os.environ)
    source = click.get_current_context().get_parameter_source
    given = {name: value for name, value in (("days", days), ("bytes_max", bytes_max)) if source(name) is not _DEFAULT}
    if given and project is None:
        raise click.UsageError("Say whose limits to set: those of all are environment variables of the bridge.")
    for_all = Retention(config.retention_days, config.store_bytes_max)
    if given and project is not None:
        run_with_store(config, change_retention(config.store_url(), project, given))
    run_with_store(config, show_retention(config.store_url(), for_all, project))


DATA_COMMANDS = (erase, retention)

"""The commands that are about what is stored as a whole: export, import, store."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from authsvc.runtime.commands import REFUSED, fail, note
from authsvc.runtime.logging import configure
from httpbridge.cli.running import filter_options, log_filter, project_argument, run_with_store
from httpbridge.config import Config


@click.command(name="export")
@project_argument
@filter_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE, compressed if its name ends in .zst or .gz. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Write over FILE if it exists.")
def export_command(project: str, output: Path | None, force: bool, **options: Any) -> None:
    """Write PROJECT's stored logs as NDJSON, one entry a line, in the order in which they were stored."""
    from httpbridge.cli.exporting import export_logs  # noqa: PLC0415 - the database libraries
    from httpbridge.cli.output_file import written  # noqa: PLC0415

    config = Config.from_environment(os.environ)
    selection = log_filter(project, **options)
    with written(output, is_forced=force) as target:
        exported = run_with_store(config, export_logs(config.store_url(), selection, target))
    note(exported)  # it is all written by now


@click.command(name="import")
@project_argument
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--skip-bad", is_flag=True, help="Leave out lines that are refused, and go on.")
def import_command(project: str, file: Path, skip_bad: bool) -> None:
    """Store the entries of FILE as PROJECT's: NDJSON as `export` and `logs --json` write it, as it is, zstd or gzip.

    With - for FILE, standard input is read. Interrupted and run again within 24 hours, it stores nothing twice.
    """
    from httpbridge.cli.importing import import_logs  # noqa: PLC0415 - the database libraries

    os.umask(0o077)  # what is stored is this user's alone
    config = Config.from_environment(os.environ)
    configure(config.log_level, config.log_format)
    config.make_store_dir()
    source = None if str(file) == "-" else file
    work = import_logs(config.store_url(), project, source, body_bytes_max=config.body_bytes_max, skips_bad=skip_bad)
    if failure := run_with_store(config, work):
        fail(failure, REFUSED)


@click.group(name="store", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def store_command(context: click.Context, as_json: bool) -> None:
    """Show how much is stored of each project."""
    from httpbridge.cli.store_view import show_usage  # noqa: PLC0415 - the database libraries

    if context.invoked_subcommand is None:
        config = Config.from_environment(os.environ)
        run_with_store(config, show_usage(config.store_url(), as_json=as_json))


@store_command.command()
def check() -> None:
    """Read every chunk that is stored, and name those that are damaged; exit status 1 if any are."""
    from httpbridge.cli.store_view import check_chunks  # noqa: PLC0415 - the database libraries

    config = Config.from_environment(os.environ)
    if run_with_store(config, check_chunks(config.store_url())):
        sys.exit(REFUSED)


STORE_COMMANDS = (export_command, import_command, store_command)

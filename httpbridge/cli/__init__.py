"""The command `httpbridge`."""

from authsvc.runtime.server_extra import require


def main() -> None:
    """Run the command, unless the services are not installed."""
    require("httpbridge")
    from httpbridge.cli.commands import main as run  # noqa: PLC0415 - has what is required
    from httpbridge.cli.data_commands import DATA_COMMANDS  # noqa: PLC0415 - likewise

    for command in DATA_COMMANDS:
        run.add_command(command)
    run()

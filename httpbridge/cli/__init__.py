"""The command `httpbridge`."""

from authsvc.runtime.server_extra import require


def main() -> None:
    """Run the command, unless the services are not installed."""
    require("httpbridge")
    from httpbridge.cli.commands import main as run  # noqa: PLC0415 - has what is required

    run()

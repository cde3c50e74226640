"""`make audit`: known vulnerabilities of what the lock files pin, by `uv audit`, whose data are OSV's.

It fails when there is one, and says so and succeeds when the data are unavailable: where one cannot look is no reason
to stop all other work. `uv audit` reads uv's own lock file, so what requirements-dev.lock pins, which has all that
requirements.lock has, is written as one first; nothing is resolved, downloaded or installed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

LOCK = Path(__file__).parent.parent / "requirements-dev.lock"
SECONDS_MAX = 60.0
FOUND = 1
"""uv's exit status for a vulnerability; 2 is every failure to look."""

_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)
_PROJECT = '[project]\nname = "audited"\nversion = "0"\nrequires-python = ">=3.11"\n'


def uv_lock(requirements: str) -> str:
    """Return the pins of a requirements file, for whatever platform, as a lock file of uv."""
    pins = [
        f'name = "{name}", version = "{version}", source = {{ registry = "." }}'
        for name, version in _PIN.findall(requirements)
    ]
    dependencies = ", ".join(f"{{ {pin} }}" for pin in pins)
    root = f'name = "audited"\nversion = "0"\nsource = {{ virtual = "." }}\ndependencies = [{dependencies}]\n'
    packages = [root, *(re.sub(r", (?=version|source)", "\n", pin) + "\n" for pin in pins)]
    header = 'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n'
    return header + "".join(f"\n[[package]]\n{package}" for package in packages)


def main(options: Sequence[str], lock: Path = LOCK) -> int:
    """Audit, with more options for uv; return the exit status."""
    uv = [str(Path(sys.executable).parent / "uv"), "audit", "--frozen", "--preview-features", "audit-command"]
    limits = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "1"}
    with TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(_PROJECT)
        Path(directory, "uv.lock").write_text(uv_lock(lock.read_text()))
        try:
            done = subprocess.run(
                [*uv, "--project", directory, *options],
                env=os.environ | limits,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"not audited: no answer within {SECONDS_MAX:g} s")
            return 0
    if done.returncode in (0, FOUND) or "://" not in done.stdout:  # else it names the address that does not answer
        print(done.stdout.strip())
        return done.returncode
    print(f"not audited, the data on vulnerabilities are unavailable:\n{done.stdout.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

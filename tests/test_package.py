"""What a wheel brings, and what works of it without the extra `server`."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest

from authsvc.runtime.server_extra import MODULES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT_DISTRIBUTIONS = {"grpcio", "msgspec", "protobuf", "typing-extensions"}
"""What pip installs without an extra: our dependencies, and theirs."""

_IMPORT_NAMES = {
    "backports-zstd": "backports.zstd", "grpcio-health-checking": "grpc_health", "grpcio-reflection": "grpc_reflection",
}  # fmt: skip

USE_CLIENT = """
import asyncio, importlib, pkgutil
import authsvc.client, authsvc.v1
from authsvc.client import KeyServiceUnavailableError, KeyValidator
from authsvc.runtime.environment import Address

for package in (authsvc.client, authsvc.v1):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

async def ask():
    validator = KeyValidator(Address.parse("127.0.0.1:9"), "a-token-of-32-characters-at-least")
    try:
        await validator.validate("dt_" + 24 * "0")
    except KeyServiceUnavailableError:
        print("unavailable")
    finally:
        await validator.close()

asyncio.run(ask())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of a copy of the checkout, which has all that must stay out of it."""
    copy, target = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "var", "build", "dist", "*.egg-info", "results")
    shutil.copytree(ROOT, copy, ignore=ignored)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True, timeout=100)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that has what `pip install` of the wheel would, without an extra."""
    directory = tmp_path_factory.mktemp("site")
    for name in CLIENT_DISTRIBUTIONS:
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (directory / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    with ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def run(site: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script that can import the standard library, and what is in the directory."""
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", script, *arguments],
        cwd=site,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def names(requirements: Sequence[str]) -> set[str]:
    return {re.split(r"[^a-zA-Z0-9._-]", requirement)[0] for requirement in requirements}


def test_a_wheel_has_the_two_packages_and_nothing_else_at_its_top(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"authsvc", "httpbridge", f"deeptracer_auth-{PROJECT['version']}.dist-info"}


def test_the_client_needs_few_distributions() -> None:
    needed, found = names(PROJECT["dependencies"]), set()
    while needed:
        found |= needed
        requirements = [line for name in needed for line in distribution(name).requires or () if "extra ==" not in line]
        needed = names(requirements) - found
    assert found == CLIENT_DISTRIBUTIONS


def test_the_client_works_without_the_services_dependencies(site: Path) -> None:
    done = run(site, USE_CLIENT)
    assert (done.returncode, done.stdout) == (0, "unavailable\n"), done.stderr


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_a_command_without_the_extra_says_so_in_one_line(site: Path, command: str) -> None:
    module, function = PROJECT["scripts"][command].split(":")
    done = run(site, f"from {module} import {function} as main; main()", "--help")
    line = f"{command}: not installed with the services: pip install 'deeptracer-auth[server]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_commands_look_for_all_of_the_extra() -> None:
    extras: Mapping[str, Sequence[str]] = PROJECT["optional-dependencies"]
    assert set(MODULES) == {_IMPORT_NAMES.get(name, name) for name in names(extras["server"])}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_file_pins_what_the_services_need(lock: str) -> None:
    pinned = set(re.findall(r"^(\S+)==", (ROOT / lock).read_text(), re.MULTILINE))
    assert names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]) <= pinned

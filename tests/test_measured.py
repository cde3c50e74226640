"""What tests measured is seen by who runs them, also when all pass."""

import subprocess
import sys
from pathlib import Path

from tests.measured import distribution

ROOT = Path(__file__).parent.parent
_TESTS = """
def test_slow(measured):
    measured("it took 7 ms")

def test_broken(measured):
    measured("it took 9 ms")
    raise AssertionError
"""


def test_lines_are_written_at_the_end_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "test_something.py"
    file.write_text(_TESTS)
    options = ["-q", "-p", "tests.measured", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, file], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.partition(" measured ")[2].split("\n")[1:3] == ["it took 7 ms", "it took 9 ms"]


def test_a_distribution_is_one_line() -> None:
    line = distribution("Revoke", [number / 1000 for number in range(100, 0, -1)])
    assert line == "Revoke: 100 times, p50 50.0 ms, p90 90.0 ms, p99 99.0 ms, max 100.0 ms"

"""`make coverage`: what the tests covered, by package. `.venv/bin/coverage html` shows it line by line.

It fails when the total is below `fail_under` in pyproject.toml.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coverage import Coverage

_COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")
_ROW = "{:<34} {:>10} {:>8} {:>8}"


def main() -> int:
    """Print the table; return the exit status."""
    measured = Coverage()
    measured.load()
    with TemporaryDirectory() as directory:
        path = Path(directory, "report.json")
        total = measured.json_report(outfile=str(path))
        report = json.loads(path.read_text())
    for line in table(report):
        print(line)
    floor = measured.get_option("report:fail_under")
    assert isinstance(floor, int | float)  # noqa: S101 - for mypy
    if total < floor:
        print(f"this is less than the {floor:g} % of fail_under in pyproject.toml", file=sys.stderr)
        return 1
    return 0


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """Make the lines of the table from coverage's report in JSON."""
    packages: dict[str, Counter[str]] = {}
    for name, module in report["files"].items():
        if module["summary"]["num_statements"]:
            package = packages.setdefault(str(Path(name).parent), Counter())
            package.update({count: module["summary"][count] for count in _COUNTS})
    yield _ROW.format("package", "statements", "branches", "covered")
    for name, package in [*sorted(packages.items()), ("total", report["totals"])]:
        statements, covered_statements, branches, covered_branches = (package[count] for count in _COUNTS)
        share = (covered_statements + covered_branches) / (statements + branches)
        yield _ROW.format(name, statements, branches, f"{share:.1%}")


if __name__ == "__main__":
    sys.exit(main())

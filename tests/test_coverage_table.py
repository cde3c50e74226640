"""`make coverage`: modules are summed by package, and the total is that of coverage itself."""

from scripts.coverage_table import table


def _summary(statements: int, covered_lines: int, branches: int, covered_branches: int) -> dict[str, int]:
    return {
        "num_statements": statements,
        "covered_lines": covered_lines,
        "num_branches": branches,
        "covered_branches": covered_branches,
    }


def test_modules_are_summed_by_package() -> None:
    files = {
        "empty/__init__.py": {"summary": _summary(0, 0, 0, 0)},
        "a/c/one.py": {"summary": _summary(6, 6, 2, 1)},
        "b/one.py": {"summary": _summary(10, 5, 0, 0)},
        "a/c/two.py": {"summary": _summary(4, 3, 8, 5)},
    }
    lines = table({"files": files, "totals": _summary(20, 14, 10, 6)})
    assert [line.split() for line in lines] == [
        ["package", "statements", "branches", "covered"],
        ["a/c", "10", "10", "75.0%"],
        ["b", "10", "0", "50.0%"],
        ["total", "20", "10", "66.7%"],
    ]

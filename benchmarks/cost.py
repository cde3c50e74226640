"""How many instructions does a cached ingest request take, against the bare aiohttp handler? `make cost`, in CI.

Usage: python -m benchmarks.cost [--record]

Seconds on a shared machine say nothing about a change of a tenth; counted instructions hardly differ from run to run,
busy or idle: cost.json has the ratios of several. Valgrind counts what `rig/cached_requests` does; the ratio to a
handler of bare aiohttp, counted in the same run, leaves the build of CPython and the machine out. Fails when the ratio
is over 1.3 × the one in cost.json, which `--record` writes anew, from several runs.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.rig.cached_requests import COUNTS, SERVERS

RECORD = Path(__file__).with_name("cost.json")
FACTOR_MAX = 1.3
"""How much dearer than recorded a request may get."""
_RECORDED_RUNS = 5


class Cost(msgspec.Struct, frozen=True):
    """Instructions a request, ours and the bare handler's."""

    ours: float
    bare: float

    @property
    def ratio(self) -> float:
        return self.ours / self.bare


class Recorded(msgspec.Struct, frozen=True):
    """What cost.json holds."""

    cost: Cost
    """Of the run whose ratio is the median."""
    ratios: list[float]
    """Of all runs, in order."""


def recorded() -> Recorded:
    """Return what was recorded last."""
    return msgspec.json.decode(RECORD.read_bytes(), type=Recorded)


def count() -> Cost:
    """Count; takes a quarter of a minute. Raises RuntimeError with what valgrind said when that fails."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [
                "valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={directory}/%p",
                sys.executable, "-m", "benchmarks.rig.cached_requests",
            ],
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-4000:])
        counted = {}
        for line in done.stdout.splitlines():
            server, requests, pid = line.split()
            counted[server, int(requests)] = _instructions(Path(directory, pid))
    few, many = COUNTS
    each = {server: (counted[server, many] - counted[server, few]) / (many - few) for server in SERVERS}
    return Cost(**each)


def _instructions(counts: Path) -> int:
    *_, summary = counts.read_text().splitlines()
    name, _, instructions = summary.partition(": ")
    assert name == "summary", summary
    return int(instructions)


def verdict(measured: Cost, recorded: Cost) -> str | None:
    """Return why a change costs too much, or None."""
    factor = measured.ratio / recorded.ratio
    if factor <= FACTOR_MAX:
        return None
    return (
        f"a cached ingest request takes {factor:.2f} × the instructions that were recorded, {FACTOR_MAX} × is "
        "the most. "
        "Find what made it dearer; where it is worth it, record it (python -m benchmarks.cost --record), and say why."
    )


def main() -> None:
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is missing: it counts the instructions (on Debian: apt-get install valgrind)")
    if "--record" in sys.argv[1:]:
        runs = sorted((count() for _ in range(_RECORDED_RUNS)), key=lambda each: each.ratio)
        new = Recorded(runs[len(runs) // 2], [round(each.ratio, 4) for each in runs])
        RECORD.write_bytes(msgspec.json.format(msgspec.json.encode(new)) + b"\n")
        print(f"recorded: {new.cost.ratio:.3f}, of {', '.join(map(str, new.ratios))}")
        return
    measured, last = count(), recorded().cost
    print(f"instructions a cached ingest request: {measured.ours:,.0f}; bare aiohttp: {measured.bare:,.0f}")
    print(f"ratio: {measured.ratio:.3f}; recorded: {last.ratio:.3f}; the most: {last.ratio * FACTOR_MAX:.3f}")
    if (reason := verdict(measured, last)) is not None:
        sys.exit(reason)


if __name__ == "__main__":
    main()

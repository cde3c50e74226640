"""`make bench`: answer all questions, print the targets, and write docs/performance.md.

Usage: python -m benchmarks [--quick] [NAME…]

With names, only these are answered and nothing is written; `--quick` tries whether everything works.
"""

import signal
import subprocess
import sys
from datetime import UTC, datetime

import msgspec

from benchmarks.rig import wrk
from benchmarks.rig.document import DOCUMENT, write
from benchmarks.rig.machine import facts
from benchmarks.rig.report import RESULTS, Report, show
from benchmarks.rig.targets import HEADING, rows

QUESTIONS = (
    "ingest", "latency", "room", "reading", "retention", "export", "refusals", "misses", "validate", "revocation",
    "bodies", "keys", "flood", "fairness", "connections", "workers", "startup",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    options = [each for each in arguments if each.startswith("-")]
    names = [each for each in arguments if each not in options] or list(QUESTIONS)
    if unknown := [each for each in names if each not in QUESTIONS] + [each for each in options if each != "--quick"]:
        sys.exit(f"{unknown[0]}: none of {', '.join(QUESTIONS)}, --quick")
    wrk.program()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    is_whole = names == list(QUESTIONS) and not options
    machine = facts() if is_whole else []  # before anything else is busy
    reports, failed = {}, []
    for name in names:
        if _ask(name, options) != 0:
            failed.append(name)
            continue
        reports[name] = msgspec.json.decode((RESULTS / f"{name}.json").read_bytes(), type=Report)
    print(show([HEADING, *rows(reports)]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if is_whole:
        DOCUMENT.write_text(write(reports, machine, datetime.now(UTC).date()))
        print(f"\nwrote docs/{DOCUMENT.name}")


def _ask(name: str, options: list[str]) -> int:
    """Run one question; return its exit status. It is told to stop when this process is, and stops its servers."""
    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}", *options])
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(sys.argv[1:])

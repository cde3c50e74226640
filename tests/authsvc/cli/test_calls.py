"""What the command line says of a change, in one line: since when it holds everywhere, or by when at the latest."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from authsvc.cli.output import by_when
from authsvc.v1 import key_service_pb2 as pb

UNREAD = "the database could not say who holds leases, or has lost changes and needs 'authsvc renew-epoch'"
RENEWED = datetime(2026, 11, 23, 11, 59, 40, 990_000, UTC)


def holders(*names: str) -> list[pb.Holder]:
    found = [pb.Holder(holder_id=f"id-of-{name}", name=name) for name in names]
    for holder in found:
        holder.renew_time.FromDatetime(RENEWED)
    return found


def effective(count: int) -> pb.Propagation:
    return pb.Propagation(effective=True, confirmed=holders("bridge-1"), confirmed_count=count)


def pending(*names: str, count: int | None = None, microsecond: int = 0, holder_id: str = "") -> pb.Propagation:
    answer = pb.Propagation(pending=holders(*names), pending_count=len(names) if count is None else count)
    for holder in answer.pending:
        holder.holder_id = holder_id or holder.holder_id
    answer.effective_by.FromDatetime(datetime(2026, 11, 23, 12, 0, 41, microsecond, UTC))
    return answer


@pytest.mark.parametrize(
    ("propagation", "line"),
    [
        (effective(0), "dead everywhere: no bridge holds a lease"),
        (effective(1), "dead everywhere, 1 bridge confirmed in 4 ms"),
        (effective(300), "dead everywhere, 300 bridges confirmed in 4 ms"),
        (pending("bridge-7"), "dead at 12:00:41Z at the latest: bridge-7 has not answered since 11:59:40Z"),
        (
            pending("b\x1b[2J"),
            "dead at 12:00:41Z at the latest: b\N{REPLACEMENT CHARACTER}[2J has not answered since 11:59:40Z",
        ),
        (
            pending("", holder_id="h\x1b[2J"),
            "dead at 12:00:41Z at the latest: h\N{REPLACEMENT CHARACTER}[2J has not answered since 11:59:40Z",
        ),
        (pending(""), "dead at 12:00:41Z at the latest: id-of- has not answered since 11:59:40Z"),
        (
            pending("a", "b", "c", "d", "e", "f", count=300),
            "dead at 12:00:41Z at the latest: "
            + ", ".join(f"{name} has not answered since 11:59:40Z" for name in "abcde")
            + ", nor have 295 more",
        ),
        (
            pending(),
            f"dead at 12:00:41Z at the latest: {UNREAD}",
        ),
    ],
)
def test_one_line_says_by_when_and_whom_that_depends_on(propagation: pb.Propagation, line: str) -> None:
    assert by_when("dead", propagation, 0.0042) == line


@pytest.mark.parametrize(("microsecond", "shown"), [(0, "12:00:41Z"), (1, "12:00:42Z"), (950_000, "12:00:42Z")])
def test_what_is_promised_is_rounded_up(microsecond: int, shown: str) -> None:
    """At 12:00:41.5 a key that is dead by 12:00:41.95 may be accepted."""
    assert by_when("dead", pending("a", microsecond=microsecond), 0.1).startswith(f"dead at {shown} at the latest")


def test_what_dev_certs_needs_is_said_where_it_is_missing(tmp_path: Path) -> None:
    script = "import sys; sys.modules['trustme'] = None; from authsvc.cli.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "dev-certs", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, [*tmp_path.iterdir()]) == (2, "", [])
    assert done.stderr.endswith(": dev-certs needs the package trustme: pip install trustme\n")

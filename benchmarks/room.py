"""How much room do stored logs take?"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.rig.log_files import compact_body
from benchmarks.rig.report import Pace, Report, Table, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import key
from benchmarks.rig.wrk import Traffic, count

SIZES = {1: 20_000, 50: 2_000, 1000: 100}
"""Different bodies by logs a request; then they come again, which no chunk is large enough to notice."""
CONNECTIONS = 32
SECONDS_A_TURN = 2
"""Times the pace."""
START = datetime(2026, 1, 31, 8, tzinfo=UTC)
STEP = timedelta(milliseconds=37)

HOW = f"""\
wrk sends different batches over {CONNECTIONS} connections to a bridge with a SQLite file of its own, without any space
in their JSON. Each entry has a number, a customer and a trace id that no other one has. Then the bridge is stopped,
which merges what is left to merge. What counts is the file and its write-ahead log, for each entry, and how many bytes
of a request's body came with it."""


async def main(pace: Pace) -> Report:
    rows: list[tuple[str, list[float | None]]] = []
    ratios = {}
    for size, different in SIZES.items():
        bodies = [compact_body(number * size, size, START + number * size * STEP, STEP) for number in range(different)]
        sent = sum(map(len, bodies)) / different / size
        async with Rig() as rig:
            await rig.key_service(keys=1)
            file = rig.new_directory() / "logs.db"
            bridge = await rig.bridge(HTTPBRIDGE_LOG_STORE_URL=f"sqlite:///{file}")
            traffic = Traffic(b"\n".join(bodies), [key(0)], CONNECTIONS)
            seen = await count(rig.directory, bridge.address, traffic, pace.seconds * SECONDS_A_TURN)
            await bridge.stop()
            entries = seen.requests * size
            stored = _bytes(file) / entries
        ratios[size] = stored / sent
        name = f"{size} {'log' if size == 1 else 'logs'} a request"
        rows.append((name, [float(entries), sent, stored, ratios[size]]))
    columns = [("entries", ",.0f"), ("bytes an entry, sent", ".0f"), ("stored", ".0f"), ("ratio", ".2f")]
    return Report(__doc__ or "", HOW, [Table("SQLite", columns, rows)], {"room": ratios[1]})


def _bytes(file: Path) -> int:
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))


if __name__ == "__main__":
    run(main)

"""How much of its driver's speed does a sink keep, at 500 rows a commit?"""

from functools import partial

from benchmarks.rig.bulk_writes import Written, measure
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, ratio, run
from benchmarks.rig.services import Rig

ROWS = 500
HOW = """\
One process writes batches of 500 entries, each in its own commit, four in flight. The driver's bulk path
(`sqlite3.executemany` in a transaction, asyncpg's `COPY`) writes the rows that the sink made of the same batch, made
in advance, into the same table with the same index and the same durability. Both copy SQLite's WAL into the database
after 16 MiB (`wal_autocheckpoint=4096`). The sink's figures include making rows of log entries. PostgreSQL has the
other core. Ratios are of rows a second."""


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        postgres = rig.postgres()

        async def write(kind: str, store: str) -> Written:
            url = postgres if store == "PostgreSQL" else f"sqlite:///{rig.new_directory()}/logs.db"
            return await measure(kind, url, ROWS, ROWS, pace.seconds)

        stores = {"SQLite": "`executemany` alone", "PostgreSQL": "`COPY` alone"}
        results = await interleaved(
            {(store, kind): partial(write, kind, store) for store in stores for kind in ("driver", "sink")},
            pace.rounds,
            warm_up=False,
        )
    rows: list[tuple[str, list[float | None]]] = []
    measured: dict[str, float | None] = {}
    for store, baseline in stores.items():
        driver = [each.per_second for each in results[store, "driver"]]
        sink = [each.per_second for each in results[store, "sink"]]
        measured[f"sink_{store.lower()}"] = ratio(sink, driver)
        rows.append((f"{store}, {baseline}", [median_of(driver), _cpu(results[store, "driver"]), 1.0]))
        rows.append((f"{store}, the sink", [median_of(sink), _cpu(results[store, "sink"]), ratio(sink, driver)]))
    columns = [("rows/s", ",.0f"), ("CPU µs a row", ".2f"), ("ratio", ".2f")]
    table = Table(f"{ROWS} rows a commit", columns, rows)
    return Report(__doc__ or "", HOW, [table], measured)


def _cpu(results: list[Written]) -> float:
    return median_of([each.cpu_seconds * 1e6 / each.rows for each in results])


if __name__ == "__main__":
    run(main)

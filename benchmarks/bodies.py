"""How long does a body hold the event loop at a time?"""

from benchmarks.rig.body_steps import measure
from benchmarks.rig.report import Pace, Report, Table, run

LARGE_BYTES = 5 * 1024 * 1024
SMALL_BYTES = 256 * 1024
HOW = """\
Bodies of 5 MiB and of 256 KiB are parsed as the bridge parses them, step by step; between two steps, other requests
have their turn. Each body is expensive in its own way: it has the most to mend, to skip or to decode. The last step
includes making the rows of up to 1,000 entries. Times are processor time, for each step the shortest of all rounds."""


async def main(pace: Pace) -> Report:
    rounds = 2 if pace.is_quick else 7
    large, small = await measure(LARGE_BYTES, rounds), await measure(SMALL_BYTES, rounds)
    rows: list[tuple[str, list[float | None]]] = [
        (
            name,
            [
                1000 * large[name].longest_seconds,
                1000 * large[name].seconds,
                large[name].count,
                1000 * small[name].longest_seconds,
            ],
        )
        for name in large
    ]
    columns = [("5 MiB, longest, ms", ".1f"), ("all, ms", ".0f"), ("steps", ",.0f"), ("256 KiB, longest, ms", ".2f")]
    measured: dict[str, float | None] = {
        name: 1000 * max(each.longest_seconds for each in steps.values())
        for name, steps in (("body_step_large", large), ("body_step_small", small))
    }
    return Report(__doc__ or "", HOW, [Table("a body of", columns, rows)], measured)


if __name__ == "__main__":
    run(main)

"""`httpbridge erase` as a process that is killed, beside a bridge that stores."""

import asyncio
import random
import signal
import sqlite3
import subprocess
from asyncio.subprocess import DEVNULL
from contextlib import closing
from pathlib import Path

from authsvc.runtime.database_url import sqlite_url
from tests.contract.test_log_sink import batch, sink_on
from tests.e2e.processes import BIN, clean_environment
from tests.e2e.stored_logs import messages
from tests.waiting import until

CHUNKS, CHUNKS_LONG = 120, 400
KILLS, KILLS_LONG = 2, 4


async def test_killed_at_any_point_and_run_again_it_erases_everything_and_nothing_else(
    tmp_path: Path, is_long: bool
) -> None:
    chunks, kills = (CHUNKS_LONG, KILLS_LONG) if is_long else (CHUNKS, KILLS)
    path = tmp_path / "logs.db"
    environ = clean_environment() | {"HTTPBRIDGE_STATE_DIR": str(tmp_path)}
    command = [str(BIN / "httpbridge"), "erase", "shop", "--text", "gone", "--yes"]
    chance = random.Random(13)
    async with sink_on(sqlite_url(path)) as sink:
        for number in range(chunks):
            await sink.write(batch(f"gone {number}", f"kept {number}", project_id="shop"))
            await sink.write(batch(f"gone {number}", project_id="blog"))
        kept = [f"kept {number}" for number in range(chunks)]

        def erased() -> list[int]:
            with closing(sqlite3.connect(path)) as connection:
                return [entries for (entries,) in connection.execute("SELECT entries FROM erasures ORDER BY id")]

        def erase() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, env=environ, capture_output=True, text=True, check=True)

        for attempt in range(kills):
            process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=DEVNULL, stderr=DEVNULL)
            try:
                most = chance.randrange(chunks // 6)
                await until(
                    "some are erased",
                    lambda: len(erased()) > attempt and erased()[attempt] > most,  # noqa: B023
                )
                await sink.write(batch(f"new {attempt}", project_id="shop"))
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            kept.append(f"new {attempt}")
            left = messages(tmp_path, "shop")
            assert [message for message in left if not message.startswith("gone")] == kept
            assert len(left) == len(kept) + chunks - sum(erased())
        done = await asyncio.to_thread(erase)
        assert f"erased {erased()[-1]} entries of project shop: with the text 'gone'" in done.stdout
        assert "nothing of it is left" in done.stdout
        assert sum(erased()) == chunks
        await sink.write(batch("after", project_id="shop"))
    assert messages(tmp_path, "shop") == [*kept, "after"]
    assert len(messages(tmp_path, "blog")) == chunks

"""Every store answers what a store of rows answered about the same logs."""

import json

from tests.contract.log_answers import GOLDEN, answers, fill


async def test_a_store_answers_as_one_of_rows_did(database_url: str) -> None:
    await fill(database_url)
    expected = json.loads(GOLDEN.read_text())
    for told, answer in zip(await answers(database_url), expected, strict=True):
        assert told == answer

"""Any bytes at all as a body get a 200, 400, 413 or 415, and a 200 stores what another reader of JSON finds in it.

On the stores, too: what was taken is written to each, and read back.
"""

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from httpbridge.ingest.mending import PIECE_BYTES
from httpbridge.logs import LogBatch
from tests.contract.test_log_sink import sink_on, stored_entries
from tests.httpbridge.conftest import Bridge, request, running_bridge
from tests.httpbridge.ingest.test_log_parser import batch_of

LIMIT_BYTES = 100_000

# What texts are made of: everything, and oftener what has broken readers of JSON before.
TEXTS = (
    st.text()
    | st.text(st.sampled_from('a"\\u0d8/{}[]\0\x1f\x7f\ufeff\ufffd😀\ud83d\ude00'))
    | st.text(min_size=120, max_size=300)
)


def values(texts: st.SearchStrategy[str], numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Draw what JSON can say."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    )


VALUES = values(TEXTS, st.floats())
FITTING_VALUES = values(TEXTS, st.floats(allow_nan=False, allow_infinity=False))
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
OPTIONAL_TEXTS = ("trace_id", "span_id", "request_id", "vercel_id", "context", "release")

Wrongly = Callable[[st.SearchStrategy[Any]], st.SearchStrategy[Any]]


def sometimes_wrong(fitting: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*[fitting] * 6, VALUES, TEXTS)


def batches(wrongly: Wrongly) -> st.SearchStrategy[Any]:
    """Draw batches as the contract has them, but for what `wrongly` makes of their fields."""
    names = wrongly(st.none() | TEXTS.map(lambda text: text[:256] or "x"))
    releases = wrongly(st.none() | TEXTS.map(lambda text: text[:128]))
    entries = st.fixed_dictionaries(
        {
            "level": wrongly(st.sampled_from(["debug", "info", "warn", "error"])),
            "message": wrongly(TEXTS),
        },
        optional={
            "timestamp": wrongly(st.datetimes(timezones=st.none() | OFFSETS).map(datetime.isoformat)),
            "metadata": wrongly(st.dictionaries(TEXTS, FITTING_VALUES, max_size=3)),
            **{name: wrongly(st.none() | TEXTS) for name in OPTIONAL_TEXTS},
            "release": releases,
            "product": FITTING_VALUES,
        },
    )
    return st.fixed_dictionaries(
        {"logs": wrongly(st.lists(wrongly(entries), min_size=1, max_size=3))},
        optional={"service": names, "environment": names, "release": releases, "x": FITTING_VALUES},
    )


BATCHES = batches(lambda fitting: fitting) | batches(sometimes_wrong)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw bytes, or JSON that is near to the contract, sometimes damaged."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=200))
    text = json.dumps(draw(BATCHES), ensure_ascii=draw(st.booleans()))
    body = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0 and body:
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return body


def _encode(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body)
    return zlib.compress(body) if encoding == "deflate" else body


def _default(value: Any, default: str) -> Any:
    return default if value is None else value


def mended(value: Any) -> Any:
    """Replace what no store has a place for, in all texts of a value: U+0000 and lone surrogates."""
    if isinstance(value, str):
        return re.sub("[\0\ud800-\udfff]", "\ufffd", value)
    return [mended(part) for part in value] if isinstance(value, (list, tuple)) else value


def read(text: str | bytes) -> Any:
    """Read JSON with Python's own reader: objects as lists of pairs, integers as text, since it limits their digits."""
    return mended(json.loads(text, parse_int=str, object_pairs_hook=list))


def check_is_what_the_body_says(batch: LogBatch, body: bytes) -> None:
    """Compare with Python's own reader of JSON."""
    content = dict(read(body))
    assert batch.service == _default(content.get("service"), "unknown")
    assert batch.environment == _default(content.get("environment"), "production")
    assert batch.release == content.get("release")
    assert len(batch.entries) == len(content["logs"])
    for stored, sent in zip(batch.entries, map(dict, content["logs"]), strict=True):
        assert (stored.level.value, stored.message) == (sent["level"], sent["message"])
        assert [getattr(stored, name) for name in OPTIONAL_TEXTS] == [sent.get(name) for name in OPTIONAL_TEXTS]
        if stored.metadata is None:
            assert sent.get("metadata") is None
        else:
            assert repr(read(stored.metadata)) == repr(sent["metadata"])  # by repr, since NaN is no equal of NaN
            assert stored.metadata.encode() in body or "\ufffd" in repr(sent["metadata"])
        if stored.timestamp is None:
            assert sent.get("timestamp") is None
        else:
            timestamp = datetime.fromisoformat(sent["timestamp"])
            assert stored.timestamp == (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC))
        kept = [stored.message, stored.metadata, *(getattr(stored, name) for name in OPTIONAL_TEXTS)]
        "".join(text for text in kept if text).encode()  # what PostgreSQL and SQLite must be able to hold
        assert not any("\0" in text for text in kept if text)


def expected_rows(batch: LogBatch) -> Iterator[dict[str, Any]]:
    """Fill in what an entry leaves to its batch."""
    for entry in batch.entries:
        yield {
            "project_id": batch.project_id,
            "key_id": batch.key_id,
            "received_at": batch.received_at,
            "service": batch.service,
            "environment": batch.environment,
            "level": entry.level.value,
            "message": entry.message,
            "timestamp": entry.timestamp or batch.received_at,
            "metadata": None if entry.metadata is None else re.sub("[\r\n]", " ", entry.metadata),
            **{name: getattr(entry, name) for name in OPTIONAL_TEXTS},
            "release": batch.release if entry.release is None else entry.release,
        }


async def check_is_stored(url: str, batches: list[LogBatch]) -> None:
    """Write them, many to a commit, and compare what the store has then."""
    async with sink_on(url) as sink:
        await asyncio.gather(*(sink.write(batch) for batch in batches))
    stored = await stored_entries(url)
    for entry in stored:
        del entry["id"]
    assert stored == [row for batch in batches for row in expected_rows(batch)]


async def post(bridge: Bridge, body: bytes, encoding: str, announced: str) -> None:
    bridge.sink.batches.clear()
    sent = request("POST", "/ingest/logs", f"Content-Encoding: {announced}", body=_encode(body, encoding))
    answer = await bridge.exchange(sent)
    assert answer.status in (200, 400, 413, 415)
    if answer.status == 200:
        assert announced in ("identity", encoding)
        (batch,) = bridge.sink.batches
        assert json.loads(answer.body) == {"ok": True, "count": len(batch.entries)}
        check_is_what_the_body_says(batch, body)
    else:
        assert bridge.sink.batches == []
        assert json.loads(answer.body)["error"]
        assert len(answer.body) < 2048


def test_any_body_is_refused_or_stored_faithfully(sqlite_url: str, postgres_url: str) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        bridge = runner.run(stack.enter_async_context(running_bridge(rate_limit=10**9, body_bytes_max=LIMIT_BYTES)))
        taken: list[LogBatch] = []

        @given(bodies(), st.sampled_from(["identity", "gzip", "deflate"]), st.booleans())
        @example(b"[" * (LIMIT_BYTES - 1), "identity", True)
        @example(b"\0" * (LIMIT_BYTES + 1), "gzip", True)
        @example(rb'{"logs":[{"level":"info","message":"\u0000"}]}', "identity", True)
        @example(rb'{"logs":[{"level":"info","message":"","metadata":{"\ud800":1e999}}]}', "identity", True)
        @example(rb'{"logs":[{"level":"info","message":"","metadata":{"\\u0000":1e999}}]}', "identity", True)
        @example(b'{"logs":[{"level":"info","message":"","metadata":{"a":%b}}]}' % (b"1" * 5000), "gzip", True)
        @example(b'\xef\xbb\xbf{"logs":[{"level":"info","message":"\xed\xa0\xbd\xed\xb8\x80"}]}', "identity", True)
        @example(
            b'{"logs":[{"level":"info","message":"","metadata":{"\xed\xa0\xbd\\ude00":1,"\\ud83d":2}}]}', "gzip", True
        )
        @settings(max_examples=300)
        def check(body: bytes, encoding: str, is_announced: bool) -> None:
            runner.run(post(bridge, body, encoding, encoding if is_announced else "identity"))
            taken.extend(bridge.sink.batches)

        try:
            check()
            assert 30 <= len(taken) <= 200  # or the strategy is too wild, or too tame
            for url in (sqlite_url, postgres_url):
                runner.run(check_is_stored(url, taken))
        finally:
            runner.run(stack.aclose())


# Of texts that are read in pieces: whatever an end of a piece may fall into.
UNITS = [
    "x", "é", "€", "😀", r"\n", r"\\", r"\"", r"\u00e9", r"\ud83d\ude00", r"\ud83d", r"\uDE00", r"\u0000", r"\\u0000",
    r"\\ud83d", "\ud83d", "\ude00", "[", "}",
]  # fmt: skip
LARGE_TEXTS = st.lists(
    st.tuples(st.lists(st.sampled_from(UNITS), min_size=1, max_size=3).map("".join), st.integers(1, 300_000)),
    min_size=1,
    max_size=4,
).map(lambda runs: "".join(unit * (size // len(unit) + 1) for unit, size in runs))


@given(st.lists(LARGE_TEXTS, min_size=3, max_size=3), st.sampled_from(["", " ", "\n\t"]))
@example(["\\\\" * (PIECE_BYTES // 2 - 2) + r"\u00e9", "\\\\" * (PIECE_BYTES // 2 - 2) + r"\ud83d\ude00", "x"], "")
@example(["x" * (PIECE_BYTES - 7) + r"\ud83d\ude00", r"\ud83d" * 100_000 + r"\ude00", "x"], "")
@settings(max_examples=25)
def test_a_large_body_is_read_as_another_reader_does(texts: list[str], space: str) -> None:
    message, key, value = texts
    body = f"""{space}{{"x": "{value}", "logs": [{{"level": "info", "message": "{message}" }}{space},
        {{"level": "info", "message": "", "metadata"{space}:{space}{{"{key}": ["{value}"]}}{space}}}]{space}}}{space}"""
    sent = body.encode("utf-8", "surrogatepass")
    check_is_what_the_body_says(batch_of(sent), sent)

"""The product as benchmarks start it is the product: its keys are valid, and only the sink may be another one."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.rig import wrk
from benchmarks.rig.comparison import Contrast, Throughput
from benchmarks.rig.probe import is_answered
from benchmarks.rig.report import interleaved
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key, unknown_key
from benchmarks.rig.wrk import Count, Traffic, VoidError


async def test_bridges_accept_the_keys_of_the_rig_and_store_unless_they_are_told_not_to() -> None:
    async with Rig() as rig:
        await rig.key_service(keys=3)
        for sink, stores in (("maintained", True), ("null", False)):
            file = rig.new_directory() / "logs.db"
            bridge = await rig.bridge(sink, HTTPBRIDGE_LOG_STORE_URL=f"sqlite:///{file}")
            assert await is_answered(bridge.address, 200, key(2), body(2))
            assert await is_answered(bridge.address, 401, unknown_key(0), body(2))
            await bridge.stop()
            assert entries_in(file) == (2 if stores else 0)


def entries_in(file: Path) -> int:
    if not file.exists():
        return 0
    with closing(sqlite3.connect(file)) as connection:
        return sum(entries for (entries,) in connection.execute("SELECT entries FROM chunks"))


async def test_a_load_that_is_refused_for_another_reason_is_void() -> None:
    async with Rig() as rig:
        await rig.key_service(keys=1)
        bridge = await rig.bridge("null", HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="1")
        with pytest.raises(VoidError, match="was not answered with 403"):
            await wrk.probe(bridge.address, Traffic(body(1), [unknown_key(0)], status=403))
        await wrk.probe(bridge.address, Traffic(body(1), [unknown_key(0)], status=401))
        await wrk.probe(bridge.address, Traffic(body(1), [key(0)], status=429, served_a_minute=1))


@pytest.mark.parametrize(
    ("seen", "traffic", "reason"),
    [
        (Count(100, 1, 0, 0), Traffic(b"", ["one"]), None),
        (Count(100, 1, 1, 0), Traffic(b"", ["one"]), "1 were refused"),
        (Count(0, 1, 0, 0), Traffic(b"", ["one"]), "0 requests"),
        (Count(100, 1, 0, 1), Traffic(b"", ["one"]), "1 connections failed"),
        (Count(100, 1, 100, 0), Traffic(b"", ["one"], status=403), None),
        (Count(100, 1, 99, 0), Traffic(b"", ["one"], status=403), "99 were refused"),
        (Count(100, 1, 98, 0), Traffic(b"", ["one"], status=429, served_a_minute=1), None),
        (Count(100, 1, 97, 0), Traffic(b"", ["one"], status=429, served_a_minute=1), "97 were refused"),
        (Count(90, 1, 0, 0), Traffic(b"", ["one"] * 100, 8, is_each_key_new=True), None),
        (Count(100, 1, 0, 0), Traffic(b"", ["one"] * 100, 8, is_each_key_new=True), "some were sent twice"),
    ],
)
def test_a_load_counts_only_when_it_was_the_one_that_is_meant(
    seen: Count, traffic: Traffic, reason: str | None
) -> None:
    flaw = wrk.flaw(traffic, seen)
    assert flaw is None if reason is None else reason in (flaw or "")


async def test_the_order_of_turns_is_reversed_every_other_round() -> None:
    order: list[str] = []

    async def turn(name: str) -> int:
        order.append(name)
        return len(order)

    results = await interleaved({"a": lambda: turn("a"), "b": lambda: turn("b")}, 3)
    assert "".join(order) == "abbaabba"
    assert results == {"a": [4, 5, 8], "b": [3, 6, 7]}


def test_a_contrasts_ratios_are_those_of_the_figures_beside_them() -> None:
    """However the rounds went: a median of ratios could say that what took less time took more."""
    rounds = {
        "baseline": [Throughput(100.0, 10.0), Throughput(200.0, 20.0), Throughput(400.0, 40.0)],
        "ours": [Throughput(150.0, 15.0), Throughput(50.0, 19.0), Throughput(300.0, 60.0)],
        "control": [Throughput(90.0, 9.0), Throughput(204.0, 20.4), Throughput(500.0, 50.0)],
    }
    contrast = Contrast(rounds, "baseline", "control", 0.03)
    assert [(name, values[:2]) for name, values in contrast.rows()] == [
        ("baseline", [200.0, 20.0]),
        ("ours", [150.0, 19.0]),
        ("control", [204.0, 20.4]),
    ]
    for name, (per_second, cost, wall, cpu) in contrast.rows():
        assert per_second is not None
        assert cost is not None
        assert (wall, cpu) == (per_second / 200.0, cost / 20.0) == (contrast.wall(name), contrast.cpu(name))
    assert (contrast.flaw(), contrast.wall_flaw()) == (None, None)


def test_a_contrast_is_void_when_its_control_differs_too_much() -> None:
    rounds = {"baseline": [Throughput(100.0, 10.0)], "control": [Throughput(102.0, 10.5)]}
    contrast = Contrast(rounds, "baseline", "control", 0.03)
    assert contrast.flaw() == "the same server differed from itself by 5.0%, more than 3%"
    assert contrast.wall_flaw() is None

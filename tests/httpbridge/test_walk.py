"""How many files one has to read to follow a request: docs/architecture.md names them."""

import sys
from pathlib import Path
from types import FrameType

import structlog

from benchmarks.rig import cached_requests as rig

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
FILES_MAX = 10
"""Besides those of the log store."""


async def test_a_cached_ingest_request_passes_few_files_and_the_documents_name_them() -> None:
    passed: set[str] = set()

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("authsvc.", "httpbridge.")) and not module.startswith("httpbridge.log_store."):
            passed.add(module)

    # As services have it by default: without a log of requests.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    protocol, transport = (await rig._ours())(), rig._Transport()
    protocol.connection_made(transport)
    before = sys.getprofile()
    try:
        for number in range(20):
            sys.setprofile(note if number > 10 else before)  # the first ones open and fill what is kept
            transport.answered.clear()
            protocol.data_received(rig._REQUEST)
            await transport.answered.wait()
    finally:
        sys.setprofile(before)
        structlog.reset_defaults()
        transport.abort = lambda: None  # type: ignore[method-assign]
        protocol.connection_lost(None)
    assert "httpbridge.ingest.handler" in passed
    assert len(passed) <= FILES_MAX, sorted(passed)
    way = ARCHITECTURE.read_text().partition("## The way of one request")[2].partition("\n## ")[0]
    for module in passed:
        assert module.rpartition(".")[2] in way, module

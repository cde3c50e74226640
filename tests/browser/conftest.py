"""Gives tests the stack. Without Chromium they are skipped, loudly, and fail where `CI=true`."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.stack import CHROMIUM, MISSING, Stack, running


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end of the run that these tests did not run."""
    if CHROMIUM is None:
        terminalreporter.write_sep("!", MISSING, red=True, bold=True)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Start everything."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    async with running(tmp_path) as stack:
        yield stack

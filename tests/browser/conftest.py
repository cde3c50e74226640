"""Gives tests the stack. Without Chromium they are skipped, loudly, and fail where `CI=true`."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.stack import CHROMIUM, MISSING, Stack, browsing, running


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end of the run that these tests did not run."""
    if CHROMIUM is None:
        terminalreporter.write_sep("!", MISSING, red=True, bold=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Start the browser that all tests share, and the event loop with it."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    async with browsing() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def stack(tmp_path: Path, browser: Browser) -> AsyncIterator[Stack]:
    """Start everything else."""
    async with running(tmp_path, browser) as stack:
        yield stack

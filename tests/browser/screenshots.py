"""Pictures of every page of the dashboard: `python -m tests.browser.screenshots FOLDER`.

Each state of `tour` is taken three times: light, dark, and 360 pixels narrow.
"""

import asyncio
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.async_api import Page

from tests.browser.stack import CHROMIUM, FORMS, MISSING, running
from tests.browser.tour import WALKS


async def take(page: Page, path: Path, name: str) -> None:
    """Write `NAME-light.png` and the others."""
    for form, (scheme, size) in FORMS.items():
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await page.set_viewport_size(size)
        await page.screenshot(path=path / f"{name}-{form}.png", full_page=True)


async def take_all(folder: Path) -> None:
    """Walk through everything."""
    number = 0
    for walk in WALKS:
        with TemporaryDirectory() as state, redirect_stdout(StringIO()):  # what the processes wrote is for tests
            async with running(Path(state)) as stack:
                async for name, page in walk(stack):
                    number += 1
                    await take(page, folder, f"{number:02}-" + re.sub(r"[^a-z]+", "-", name.lower()).strip("-"))
    print(f"{number} pages in {folder}, each light, dark and narrow")  # noqa: T201


if __name__ == "__main__":
    if CHROMIUM is None or len(sys.argv) != 2:
        sys.exit(MISSING if CHROMIUM is None else __doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(folder))

"""Pictures of every page of the dashboard: `python -m tests.browser.screenshots DIRECTORY [WALK…]`.

Each state of `tour` is taken three times: light, dark, and 360 pixels narrow. `dashboard.png` is the README's picture.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.async_api import Page

from tests.browser.stack import CHROMIUM, FORMS, MISSING, browsing, running
from tests.browser.tour import WALKS

IN_README = "logs"


async def take(page: Page, path: Path, name: str) -> None:
    """Write `NAME-light.png` and the others."""
    for form, (scheme, size) in FORMS.items():
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await page.set_viewport_size(size)
        await page.screenshot(path=path / f"{name}-{form}.png", full_page=True)


async def take_all(directory: Path, names: Sequence[str]) -> None:
    """Walk through everything, or through the walks of these names."""
    pages = 0
    for walk in (walk for walk in WALKS if not names or walk.__name__ in names):
        with TemporaryDirectory() as state, redirect_stdout(StringIO()):  # what the processes wrote is for tests
            async with browsing() as browser, running(Path(state), browser) as stack:
                number = 0
                async for name, page in walk(stack):
                    number += 1
                    if name == IN_README:
                        await page.emulate_media(color_scheme="light")
                        await page.set_viewport_size(FORMS["light"][1])
                        await page.screenshot(path=directory / "dashboard.png")
                    plain = re.sub(r"[^a-z]+", "-", name.lower())
                    await take(page, directory, f"{walk.__name__}-{number:02}-{plain}")
                pages += number
    print(f"{pages} pages in {directory}, each light, dark and narrow")  # noqa: T201


if __name__ == "__main__":
    if CHROMIUM is None or len(sys.argv) < 2:
        sys.exit(MISSING if CHROMIUM is None else __doc__)
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(directory, sys.argv[2:]))

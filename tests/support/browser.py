"""Headless Chromium, for tests that open pages as a reader does. They are skipped where it is not installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
NARROW, WIDE = 390, 1280  # pixels
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a browser; skip the test if there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'simclr-toolkit[browser]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, url: str, width: int = WIDE, scheme: str = "light") -> Iterator[Any]:
    """Yield a page; afterwards, check that it had no error and asked nobody but `url` for anything."""
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        page, errors, requests = context.new_page(), [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        yield page
        assert errors == []
        assert [found for found in requests if not found.startswith((url, "data:"))] == []

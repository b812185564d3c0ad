"""Draw the picture of a report in the README: python scripts/report_picture.py RUN/report.html docs/images/report.webp

It is the top of the page in headless Chromium, which must be installed, with playwright.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 1700


def main(page: str, out: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        view.goto(Path(page).resolve().as_uri())
        pixels = view.screenshot()
        browser.close()
    Image.open(io.BytesIO(pixels)).save(out, "WEBP", quality=45, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Pictures of the page of a running server, as the documentation shows them.

    python tests/serving/page_images.py 'http://127.0.0.1:8000/?user=308' docs/images/page.png
    python tests/serving/page_images.py URL FILE --width 390 --phone --dark

Needs chromium. A picture shows as much of the page as the height holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from browser import Browser, find_chromium

LARGEST = 200_000
SHOWN = "document.querySelectorAll('#reasons li').length > 0"
NOTE = "document.querySelector('#timeline-note').innerText"


def take(
    browser: Browser,
    url: str,
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    phone: bool = False,
    dark: bool = False,
    add: bool = False,
) -> int:
    """Open the page, add the third recommendation if asked to, take a picture; gives its bytes."""
    browser.size(width, height, phone=phone)
    wishes = {"prefers_color_scheme": "dark" if dark else "light"}
    browser.prefer(**wishes, prefers_reduced_motion="reduce")
    browser.open(url)
    browser.until(SHOWN)
    if add:
        before = browser.evaluate(NOTE)
        browser.click("#items li:nth-child(3) .more")
        browser.until(f"{NOTE} !== {json.dumps(before)}")
    browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    browser.screenshot(path)
    return path.stat().st_size


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("url")
    arguments.add_argument("path", type=Path)
    arguments.add_argument("--width", type=int, default=1280)
    arguments.add_argument("--height", type=int, default=900)
    arguments.add_argument("--phone", action="store_true")
    arguments.add_argument("--dark", action="store_true")
    arguments.add_argument("--add", action="store_true")
    given = vars(arguments.parse_args())
    chromium = find_chromium()
    if chromium is None:
        print("there is no chromium on the path", file=sys.stderr)
        return 1
    path = given["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Browser(chromium) as browser:
        size = take(browser, **given)
    print(f"{path}: {size:,} bytes")
    return int(size > LARGEST)


if __name__ == "__main__":
    sys.exit(main())

"""Draws the icons from ``icon.svg`` with Chromium; the results are committed: python mobile_demo/app/icons/draw.py"""

from __future__ import annotations

import base64
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).resolve().parent
# A maskable icon is cut to any shape within the inner 80%: the picture is drawn smaller on a ground of its own.
ICONS = {"icon-192.png": (192, 1.0), "icon-512.png": (512, 1.0), "icon-maskable-512.png": (512, 0.78)}
GROUND = "#0b5566"


def main() -> None:
    """Write each icon beside the drawing."""
    picture = base64.b64encode((FOLDER / "icon.svg").read_bytes()).decode()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, (size, share) in ICONS.items():
            page = browser.new_page(viewport={"width": size, "height": size})
            ground = GROUND if share < 1 else "transparent"
            page.set_content(
                f"<body style='margin:0;height:100vh;display:grid;place-items:center;background:{ground}'>"
                f"<img width='{round(size * share)}' src='data:image/svg+xml;base64,{picture}'>"
            )
            page.screenshot(path=FOLDER / name, omit_background=True)
        browser.close()


if __name__ == "__main__":
    main()

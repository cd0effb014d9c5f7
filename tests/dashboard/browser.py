"""Chromium on the dashboard, and what it complains of.

Invariant: every message of the console and every error of a page is kept, whoever looks.
"""

from __future__ import annotations

import importlib
import os
import shutil
from typing import TYPE_CHECKING, Any

from demo_cluster import require

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


def chromium() -> str:
    """The browser of this machine."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    found = os.environ.get("KILN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    require(found is not None, "there is no Chromium here: apt-get install chromium")
    return str(found)


class Browser:
    """One browser, any number of pages."""

    def __init__(self) -> None:
        """Starts it."""
        api = importlib.import_module("playwright.sync_api")
        self.driver: Any = api.sync_playwright().start()
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        self.browser = self.driver.chromium.launch(executable_path=chromium(), args=arguments)
        self.complaints: list[str] = []

    def page(self, size: dict[str, int], *, dark: bool = False) -> Any:  # noqa: ANN401
        """A page of its own; playwright has no types that are known here."""
        scheme = "dark" if dark else "light"
        phone = size is PHONE
        context = self.browser.new_context(
            viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone
        )
        page = context.new_page()
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.complaints.append(f"page: {error}"))
        page.set_default_timeout(30_000)
        return page

    def heard(self, message: Any) -> None:  # noqa: ANN401
        """Keeps what the console has of errors and warnings."""
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def stop(self) -> None:
        """Ends it."""
        self.browser.close()
        self.driver.stop()


def shot(page: Any, folder: Path | None, name: str) -> None:  # noqa: ANN401
    """A picture of the whole page, where somebody wants one."""
    if folder is not None:
        page.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def until(page: Any, what: str, holds: Callable[[], bool], within: float) -> None:  # noqa: ANN401
    """Looks again and again, letting the page go on, at most `within` seconds."""
    for _ in range(int(within * 20)):
        if holds():
            return
        page.wait_for_timeout(50)
    require(holds(), f"no {what} within {within:.0f} s")

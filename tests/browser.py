"""Pages in a real browser: Debian's chromium driven by playwright, with everything that goes wrong in them noted."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

PATIENCE = 600_000
"""Milliseconds that the browser may take for one step: on a busy machine it can be minutes."""
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS), timeout=PATIENCE)
        yield browser
        browser.close()


class Opened:
    """A page that is open, and what went wrong in it since."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1400, "height": 900}, reduced_motion="reduce", **context)
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._request)
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def _request(self, request: Any) -> None:
        if request.url != self.address and not request.url.startswith(("data:", "blob:")):
            self.wrong.append(f"request: {request.url}")

    def texts(self, selector: str) -> list[str]:
        """The text of every element that a selector finds."""
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    def rows(self, selector: str) -> list[list[str]]:
        """The cells of a table's body, as text."""
        found = self.page.eval_on_selector_all(
            f"{selector} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        )
        return list(found)

    def graph(self, expression: str) -> Any:
        """A value of the graph on the canvas, ``cy``."""
        return self.page.evaluate(
            f"(() => {{ const cy = document.getElementById('canvas')._cyreg.cy; return {expression}; }})()"
        )

    def act(self, expression: str) -> None:
        """Do something with the graph; what cytoscape returns, itself, takes long to send."""
        self.graph(f"void ({expression})")

    def click_node(self, node: str) -> None:
        """Click where a node is drawn."""
        self.page.locator("#canvas").scroll_into_view_if_needed()
        at = self.graph(f"cy.getElementById({node!r}).renderedPosition()")
        self.page.locator("#canvas").click(position=at)

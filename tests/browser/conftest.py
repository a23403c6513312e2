"""A real browser: Debian's Chromium, driven by Playwright, in front of a real server and worker."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.deployed import Deployed


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser; it may be root's, so Chromium's sandbox is off: it opens only pages of this project."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: install Debian's package of that name; `make test` does so if it may")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots go: the folder that the variable SCREENSHOTS names, else a temporary one."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def ui(browser: Browser, deployed: Deployed) -> Iterator[Page]:
    """A page of the Prefect UI, signed in."""
    page = browser.new_context(viewport={"width": 1300, "height": 1000}, device_scale_factor=2).new_page()
    page.goto(deployed.ui)
    page.locator("input").first.fill((deployed.home / "secret").read_text().strip())
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard**")
    yield page
    page.context.close()

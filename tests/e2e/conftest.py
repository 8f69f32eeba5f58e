"""The browser that opens pages, and pages of `inspect` to open."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_browser import CHROMIUM, Browser, hostile_figures, write
from inspect_figures import byte_tokenizer, make_figures, plain_texts

from nemo_tvkd.commands.inspect.numbers import Figures


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Of each file its own: while it is open, nothing else in this process can run an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    opened = Browser(chromium)
    yield opened
    for context in chromium.contexts:
        context.close()
    assert opened.complaints == []


@pytest.fixture(scope="session")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer."""
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def inspected(bytewise: Any) -> Figures:
    """What `plain_page` shows."""
    return make_figures(bytewise, plain_texts(8, 120))


@pytest.fixture(scope="session")
def plain_page(inspected: Figures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "page.html", inspected)


@pytest.fixture(scope="session")
def hostile_page(bytewise: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("hostile") / "page.html", hostile_figures(bytewise))

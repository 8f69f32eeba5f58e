"""The built documentation: complete, in need of nothing else, and readable on a phone."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from docs_pages import DOCS, PAGES

from nemo_tvkd.config.documented import keys
from nemo_tvkd.config.table import COMMANDS, OWN_KEYS
from nemo_tvkd.losses.methods import METHODS

CHROMIUM = shutil.which("chromium")
LOADED = {"script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src",), "object": ("data",)}
NAMED_ONLY = {"canonical", "next", "prev", "alternate"}
"""Relations of links in a head that a browser does not fetch."""


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def fetched(self) -> Iterator[str]:
        """Addresses that a browser fetches by itself."""
        for tag, attributes in self.found:
            yield from (attributes[name] for name in LOADED.get(tag, ()) if name in attributes)
            if tag == "link" and not set(attributes.get("rel", "").split()) & NAMED_ONLY:
                yield attributes.get("href", "")

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.found if "id" in attributes}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with warnings as errors: links, anchors and pages that the navigation leaves out."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Elements]:
    return {str(page.relative_to(site)): Elements(page) for page in sorted(site.rglob("*.html"))}


def test_every_page_is_there(pages: dict[str, Elements]) -> None:
    wanted = {str(page.relative_to(DOCS).with_suffix(".html")) for page in PAGES}
    wanted |= {f"reference/{command}.html" for command in (*OWN_KEYS, "commands", "algorithms")}
    assert set(pages) == wanted | {"changelog.html", "404.html"}


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Elements]) -> None:
    fetched = [(name, address) for name, page in pages.items() for address in page.fetched()]
    assert len(fetched) > 100
    assert not [pair for pair in fetched if re.match(r"(https?:)?//", pair[1])]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']*", text), sheet


def test_equations_are_mathml(site: Path, pages: dict[str, Elements]) -> None:
    tags = [tag for tag, _ in pages["algorithms.html"].found]
    assert tags.count("math") > 60
    assert [attributes.get("display") for tag, attributes in pages["algorithms.html"].found if tag == "math"].count(
        "block"
    ) == (DOCS / "algorithms.md").read_text(encoding="utf-8").count("\n$$\n") // 2
    for name in pages:
        text = (site / name).read_text(encoding="utf-8")
        assert 'class="arithmatex">\\' not in text, f"an equation of {name} stayed TeX"


def test_the_reference_has_every_key(pages: dict[str, Elements]) -> None:
    for command in OWN_KEYS:
        wanted = {key.name for key in keys(COMMANDS[command].schema)} - {"algorithm"}
        assert wanted <= pages[f"reference/{command}.html"].ids(), command
    wanted = {f"{name}.{key.name}" for name, method in METHODS.items() for key in keys(method.config, "algorithm.")}
    assert {name for name in wanted if not name.endswith(".algorithm.name")} <= pages["reference/algorithms.html"].ids()


def test_the_reference_has_every_command(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in COMMANDS.values():
        assert command.what[1:].replace("&", "&amp;") in text


def test_every_module_is_listed(site: Path) -> None:
    text = (site / "architecture.html").read_text(encoding="utf-8")
    for file in (DOCS.parent / "nemo_tvkd").rglob("*.py"):
        assert f"<code>{file.name}</code>" in text, file


SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
MEASURE = """() => {
  const wide = [...document.querySelectorAll(".md-content :is(h1, h2, h3, p, li, dt, dd, pre, table, math, img)")]
    .filter((each) => !each.closest(".md-typeset__scrollwrap, .highlight, .arithmatex, .md-nav"))
    .filter((each) => each.getBoundingClientRect().right > innerWidth + 1);
  return { width: document.scrollingElement.scrollWidth, wide: wide.map((each) => each.outerHTML.slice(0, 200)) };
}"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_pages_open_from_disk_and_fit(site: Path, pages: dict[str, Elements], chromium: Any) -> None:
    page = chromium.new_page()
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    for name in pages:
        if name == "404.html":  # its paths are those of a server
            continue
        page.goto((site / name).as_uri())
        for width, height in SIZES.values():
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_function("document.getAnimations().every((a) => a.playState !== 'running')")
            found = page.evaluate(MEASURE)
            assert found["width"] <= width, f"{name} is {found['width']} wide at {width}"
            assert not found["wide"], f"{name} at {width}: {found['wide']}"
    page.close()
    assert not said
    assert {address.split(":", 1)[0] for address in requests} <= {"file", "data", "about"}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_search_works_from_disk(site: Path, chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type("telescopes", delay=20)
    page.locator(".md-search-result__item", has_text="What telescopes").first.wait_for(timeout=20_000)
    page.close()

"""The page of `inspect` in a real browser: hostile text, narrow screens, contrast, many pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
from inspect_browser import (
    HOSTILE,
    RUN,
    Browser,
    draw_all,
    hostile_figures,
    needs_chromium,
    panel,
    scroll_through,
    shown_pairs,
    write,
)
from inspect_figures import make_figures, plain_texts

from nemo_tvkd.commands.inspect.numbers import psi

pytestmark = needs_chromium


def test_hostile_text_does_nothing_and_is_whole(browser: Browser, hostile_page: Path, bytewise: Any) -> None:
    page = browser.open(hostile_page)
    draw_all(page)
    scroll_through(page)
    page.fill("#search", "<script>")
    assert shown_pairs(page)
    page.fill("#search", "")
    for key in ("3", "j", "2", "1"):
        page.keyboard.press(key)
    assert page.evaluate("window.canary") is None
    assert (
        page.evaluate("document.querySelectorAll('main img, main iframe, main b b, [onerror], [onload]').length") == 0
    )
    assert page.evaluate("document.scripts.length") == 2 + len(HOSTILE)
    seen: set[tuple[str, str]] = set()
    for index, pair in enumerate(hostile_figures(bytewise).pairs):
        for side, response in zip(("chosen", "rejected"), pair.sides, strict=True):
            found = page.locator(f"#pair-{index} .side.{side} [role=listbox]").evaluate("e => e.textContent")
            assert found == bytewise.decode(response.ids) == "".join(response.pieces.texts)
        marks = page.locator(f"#pair-{index} .c").evaluate_all(
            "found => found.map(e => [e.textContent, e.dataset.mark])"
        )
        seen |= {(text, mark) for text, mark in marks}
        turns = page.locator(f"#pair-{index} .turn .text").evaluate_all("found => found.map(e => e.textContent)")
        assert turns == [HOSTILE[index]] * 3
        assert "\u202e" not in page.locator(f"#pair-{index} .source").evaluate("e => e.textContent")
    expected = {("\u202e", "⟨RLO⟩"), ("\n", "↵"), ("\t", "→   "), ("\0", "⟨NUL⟩"), ("\x01", "⟨U+0001⟩"), ("", "⟨F0⟩")}
    assert expected <= seen
    assert {"\u2028", "\u200b", "\u200d", "\ufeff", "\r", "\x7f"} <= {text for text, _ in seen}


def test_hostile_text_in_the_panel_stays_text(browser: Browser, hostile_page: Path) -> None:
    page = browser.open(hostile_page)
    draw_all(page)
    page.locator("#pair-1 .side.chosen .t").nth(3).hover()
    assert panel(page)["token"] == "“c”"
    for index in range(len(HOSTILE)):  # the likeliest tokens are spelled by the hostile words
        page.locator(f"#pair-{index} .side.rejected .t").first.hover()
    assert page.evaluate("window.canary") is None


def test_the_policy_stops_what_a_mistake_would_let_in(chromium: Any, plain_page: Path, tmp_path: Path) -> None:
    """Markup in the page itself, as if something had not been escaped, runs nothing and asks for nothing."""
    file = tmp_path / "page.html"
    injected = f"<script>{RUN}</script><img src='https://example.com/x.png' onerror='{RUN}'><p style='color:red'>"
    file.write_text(plain_page.read_text().replace("</header>", f"{injected}</header>"))
    browser = Browser(chromium)
    page = browser.open(file)
    page.wait_for_timeout(200)
    assert page.evaluate("window.canary") is None
    others = [line for line in browser.complaints if not line.startswith("console")]
    assert others == ["https://example.com/x.png", "failed: csp"]  # it was about to ask, and was not let
    assert sum("Content Security Policy" in line for line in browser.complaints) >= 3
    refused = page.evaluate(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (e) { return e.name; } })()"
    )
    assert refused == "TypeError"  # Trusted Types: no markup from strings
    page.context.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("kind", ["hostile_page", "plain_page"])
def test_nothing_overflows(browser: Browser, width: int, kind: str, request: pytest.FixtureRequest) -> None:
    page = browser.open(request.getfixturevalue(kind), width)
    draw_all(page)
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
    scroll_through(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    within = "found => Math.max(...found.map(e => e.getBoundingClientRect().right))"
    assert page.locator(".t, .turn, h2, .source, .verdict, #bar, #panel, figure, .note").evaluate_all(within) <= width
    page.locator("#pair-1 .t").nth(2).hover()
    assert page.locator("#panel, #panel dd").evaluate_all(within) <= width


CONTRAST = """found => {
  const light = c => { c = c / 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const shine = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const ground = e => parse(getComputedStyle(e).backgroundColor);
  const behind = e => ground(e)[3] === 0 ? behind(e.parentElement) : ground(e);
  return found.map(e => {
    const [a, b] = [shine(parse(getComputedStyle(e).color)), shine(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.className || e.tagName];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Browser, plain_page: Path, scheme: str) -> None:
    page = browser.open(plain_page, scheme=scheme)
    draw_all(page)
    page.locator("#pair-0 .t").first.hover()
    page.wait_for_timeout(300)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    shades = page.locator("#scale i").evaluate_all(
        "found => new Set(found.map(e => getComputedStyle(e).backgroundColor)).size"
    )
    assert shades == 15
    everything = (
        "#scale i, .t, p, b, h1, h2, h3, td, th, dt, dd, figcaption, summary, label, button, .verdict, small, select"
    )
    weakest = min(page.locator(everything).evaluate_all(CONTRAST))
    assert weakest[0] >= 4.5, weakest


def test_numbers_that_are_none_leave_the_page_whole(browser: Browser, bytewise: Any, tmp_path: Path) -> None:
    made = make_figures(bytewise, plain_texts(2, 40))
    side = made.pairs[0].chosen
    assert side.value is not None
    side.value[3], side.logp[2] = float("nan"), float("-inf")
    side.psi = psi(made.rule, side.value)
    page = browser.open(write(tmp_path / "page.html", made))
    for key in "12345":
        page.keyboard.press(key)
    page.locator("#pair-0 .side.chosen .t").nth(2).hover()
    assert panel(page)["log π"] == "–"


def test_many_long_pairs_open_and_switch_at_once(browser: Browser, bytewise: Any, tmp_path: Path) -> None:
    """200 pairs of 500 tokens a response."""
    made = make_figures(bytewise, plain_texts(8, 500))
    made.pairs = made.pairs * 25
    made.margins = made.margins * 25
    file = write(tmp_path / "page.html", made)
    page = browser.open(file)
    drawn = page.locator(".side").count()
    assert 0 < drawn < 40  # the rest waits until it comes near
    opened = page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
    assert opened < 5000
    switched = page.evaluate(
        "(() => { const start = performance.now(); document.querySelectorAll('#switch input')[1].click();"
        " document.body.offsetHeight; return performance.now() - start; })()"
    )
    assert switched < 1000
    page.evaluate("location.hash = '#pair-150'")
    page.wait_for_selector("#pair-150 .side")
    assert (
        json.loads(page.locator("#data-150").text_content())["sides"][0]["ids"] == made.pairs[150].chosen.ids.tolist()
    )

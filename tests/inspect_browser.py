"""The page of `inspect` in Chromium: hostile texts, a browser that complains, and what tests ask of a page."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from inspect_figures import make_figures

from nemo_tvkd.commands.inspect.numbers import Figures
from nemo_tvkd.commands.inspect.page import html

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")

RUN = "window.canary = 1; alert(1)"
HOSTILE = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script><!-- <script>",
    f"<img src=x onerror='{RUN}'><svg onload='{RUN}'><iframe srcdoc='<script>{RUN}</script>'></iframe>",
    f"{{{{ 7*7 }}}} ${{{RUN}}} {{% raw %}} javascript:{RUN} \"'&lt; &amp; \\u003c",
    "\u202egnp.exe\u202c \u2066isolated\u2069 \u200fabc\u200e \u061c \x00\x01\x1b[31m\x7f\x85",
    "العربية كلمات كثيرة 123 abc שלום עולם",
    "👨\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪 e\u0301 \ufe0f \U000e0041",
    "line\u2028paragraph\u2029 zero\u200bwidth \ufeff soft\u00adhyphen\r\n\ttab\n\n\nend",
    "x" * 5000,
    "\u4f60" * 300,
)


def hostile_figures(tokenizer: Any) -> Figures:
    texts = [
        (
            [("user", text), ("assistant", text), ("<b>user</b>", text)],
            text[: 5000 if len(text) > 999 else 600],
            f"no {text[:300]}",
        )
        for text in HOSTILE
    ]
    figures = make_figures(tokenizer, texts, source=f"{HOSTILE[1]}\u202e", name=HOSTILE[2])
    figures.notes += HOSTILE
    figures.facts += [(HOSTILE[0], text) for text in HOSTILE]
    figures.words |= dict(zip(figures.words, HOSTILE, strict=False))
    return figures


class Browser:
    """Chromium, which must neither run what is in a page's data nor ask for anything."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium
        self.complaints: list[str] = []

    def open(self, file: Path, width: int = 1280, height: int = 900, scheme: str = "light", script: bool = True) -> Any:
        context = self.chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: self.complaints.append(f"console {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error {error}"))
        address = file.as_uri()
        page.on("request", lambda request: request.url.split("#")[0] == address or self.complaints.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.failure}"))
        page.goto(address)
        return page


def write(file: Path, figures: Figures) -> Path:
    file.write_text(html(figures), encoding="utf-8")
    return file


def draw_all(page: Any) -> None:
    """Every pair, as scrolling through the page would."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def scroll_through(page: Any) -> None:
    page.evaluate("document.querySelectorAll('.pair').forEach(pair => pair.scrollIntoView())")
    page.wait_for_timeout(100)


def shown_pairs(page: Any) -> list[str]:
    return page.locator(".pair:not([hidden])").evaluate_all("found => found.map(pair => pair.id)")


def panel(page: Any) -> dict[str, str]:
    """The numbers of the token, by name."""
    items = page.locator("#panel dl > div").evaluate_all(
        "items => items.map(item => [item.querySelector('dt').textContent, item.querySelector('dd').textContent])"
    )
    return dict(items)


def as_number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))

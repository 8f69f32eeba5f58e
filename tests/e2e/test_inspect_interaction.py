"""The page of `inspect` in a real browser: colours, marks, the numbers that it shows, keys, filters."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from inspect_browser import Browser, as_number, draw_all, needs_chromium, panel, shown_pairs, write
from inspect_figures import make_figures, plain_texts

from nemo_tvkd.commands.inspect.numbers import Figures, series
from nemo_tvkd.losses.shaping import Shaping
from nemo_tvkd.parallel.statistic import Statistic

pytestmark = needs_chromium


def test_tokens_are_coloured_ranked_and_barred(browser: Browser, plain_page: Path, inspected: Figures) -> None:
    page = browser.open(plain_page)
    draw_all(page)
    assert page.locator("#switch input").evaluate_all("found => found.map(e => e.value)") == [
        *("psi", "value", "logp", "diff", "implicit")
    ]
    for position, quantity in enumerate(inspected.quantities):
        page.keyboard.press(str(position + 1))
        assert quantity.unit in page.locator("#legend").text_content()
        assert "98th percentile" in page.locator("#legend").text_content()
        assert as_number(page.locator("#high").text_content()) == pytest.approx(quantity.limit, rel=5e-3)
        for side, response in zip(("chosen", "rejected"), inspected.pairs[2].sides, strict=True):
            spans = page.locator(f"#pair-2 .side.{side} .t")
            numbers = series(response, quantity.key, inspected.beta)
            classes = spans.evaluate_all("found => found.map(e => [e.className, e.dataset.rank ?? ''])")
            for x, (name, _) in zip(numbers, classes, strict=True):
                step = min(7, math.ceil(abs(x) / quantity.limit * 7))
                assert name.split()[1] == (f"{'p' if x > 0 else 'n'}{step}" if x else "p0")
            ranks = {int(rank): t for t, (_, rank) in enumerate(classes) if rank}
            assert [numbers[ranks[k]] for k in (1, 2, 3)] == sorted(numbers, reverse=True)[:3]
    first = page.locator("#pair-2 [data-rank='1']").first
    style = first.evaluate("e => [getComputedStyle(e).textDecorationLine, getComputedStyle(e, '::after').content]")
    assert style == ["underline", '"1"']
    bar = "e => getComputedStyle(e).boxShadow"
    page.keyboard.press("1")
    assert page.locator("#pair-2 .p7").first.evaluate(bar) != "none"
    assert page.locator("#pair-2 .p7").first.evaluate(bar) != page.locator("#pair-2 .n7").first.evaluate(bar)


def test_the_panel_shows_the_numbers(browser: Browser, plain_page: Path, inspected: Figures) -> None:
    page = browser.open(plain_page)
    assert page.locator("#panel").is_hidden()
    response, t = inspected.pairs[0].chosen, 11
    page.locator("#pair-0 .side.chosen .t").nth(t).hover()
    found = panel(page)
    assert response.value is not None
    assert response.ref is not None
    assert response.top_p is not None
    expected = {
        "ψₜ": response.psi[t],
        "Σψ so far": response.psi[: t + 1].sum(),
        "V(sₜ)": response.value[t],
        "V(sₜ₊₁)": response.value[t + 1],
        "log π": response.logp[t],
        "log ref": response.ref[t],
        "log π − log ref": response.logp[t] - response.ref[t],
        "β (log π − log ref)": 0.1 * (response.logp[t] - response.ref[t]),
    }
    for name, number in expected.items():
        assert as_number(found[name]) == pytest.approx(float(number), abs=6e-5), name
    assert found["token"] == f"“{response.pieces.texts[t]}”"
    assert found["id"] == str(response.ids[t])
    assert found["position"] == f"12 of {len(response.ids)}"
    chances = [float(p) for p in re.findall(r"” ([\d.e-]+)", found["likeliest at sₜ"])]
    assert chances == pytest.approx(response.top_p[t].tolist(), rel=5e-3)
    marker = page.locator("#pair-0 .plots svg path.marker").first
    assert marker.get_attribute("visibility") == "visible"
    before = marker.get_attribute("d")
    page.locator("#pair-0 .side.chosen .t").nth(t + 5).hover()
    assert marker.get_attribute("d") != before
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert marker.get_attribute("visibility") == "hidden"


def test_the_summary_is_that_of_the_numbers(browser: Browser, plain_page: Path, inspected: Figures) -> None:
    page = browser.open(plain_page, script=False)  # the tables are there without a script, and it is said what is not
    assert page.locator("noscript").is_visible()
    rows = page.locator("#pair-3 .numbers tbody tr").all_text_contents()
    pair = inspected.pairs[3]
    shaping = next(row for row in rows if row.strip().startswith("shaping Ψ"))
    numbers = [as_number(text) for text in re.findall(r"−?\d+\.\d{4}", shaping)]
    assert numbers == pytest.approx([pair.chosen.shaping, pair.rejected.shaping, pair.margin], abs=6e-5)
    counts = " ".join(page.locator(".counts").text_content().split())
    agrees = sum(each.margin > 0 for each in inspected.pairs)
    assert f"agrees with the label in {agrees}, disagrees in {8 - agrees}" in counts
    text = page.locator("#overview").text_content()
    assert "the sum telescopes" in text
    assert f"up to {max(abs(each.margin) for each in inspected.pairs):.4g}" in text


def test_keys(browser: Browser, plain_page: Path) -> None:
    page = browser.open(plain_page)
    focused = "(e => e.id || [e.pair, e.side, e.token].join())(document.activeElement)"
    for key, expected in (
        *(("j", "title-0"), ("j", "title-1"), ("k", "title-0"), ("ArrowDown", "title-1")),
        *(("Tab", None), ("Tab", "1,0,0"), ("ArrowRight", "1,0,1"), ("ArrowRight", "1,0,2"), ("ArrowLeft", "1,0,1")),
        *(("Tab", "1,1,0"), ("End", None), ("Home", "1,1,0"), ("Shift+Tab", "1,0,1")),
        *(("j", "title-2"), ("ArrowUp", "title-1"), ("/", "search")),
    ):
        page.keyboard.press(key)
        if expected:
            assert page.evaluate(focused) == expected, key
        if key == "ArrowRight":
            assert panel(page)["position"].startswith("2 of" if expected == "1,0,1" else "3 of")
    page.keyboard.type("j1?")  # in a field they are letters
    assert page.input_value("#search") == "j1?"
    page.fill("#search", "")
    page.locator("#title-0").focus()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()
    page.keyboard.press("2")
    assert page.locator("#switch input:checked").get_attribute("value") == "value"
    page.locator("#pair-0 .t").first.focus()
    outline = page.locator("#pair-0 .t").first.evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    page.locator("#title-3").evaluate("e => { e.focus({ preventScroll: true }); }")
    page.keyboard.press("j")
    top, bar = (page.locator(each).bounding_box() for each in ("#title-4", "#bar"))
    assert top["y"] >= bar["y"] + bar["height"]


def test_filters_and_sorting(browser: Browser, plain_page: Path, inspected: Figures) -> None:
    page = browser.open(plain_page)
    margins = {f"pair-{i}": pair.margin for i, pair in enumerate(inspected.pairs)}
    every = list(margins)
    assert shown_pairs(page) == every
    page.select_option("#verdict", "disagrees")
    against = [name for name in every if margins[name] < 0]
    assert 0 < len(against) < 8
    assert shown_pairs(page) == against
    assert page.text_content("#count") == f"{len(against)} of 8 pairs"
    page.select_option("#verdict", "")
    page.fill("#least", "-1")
    page.fill("#most", "3")
    assert shown_pairs(page) == [name for name in every if -1 <= margins[name] <= 3]
    page.fill("#least", "1e9")
    assert shown_pairs(page) == []
    assert page.locator("#none").is_visible()
    page.click("#clear")
    page.select_option("#sort", "against")
    assert shown_pairs(page) == sorted(every, key=lambda name: margins[name])
    page.select_option("#sort", "size")
    assert shown_pairs(page) == sorted(every, key=lambda name: -abs(margins[name]))
    page.fill("#search", inspected.pairs[5].turns[0]["content"][:40].upper())
    assert shown_pairs(page) == ["pair-5"]
    page.fill("#search", "")
    page.select_option("#sort", "given")
    assert shown_pairs(page) == every


def test_other_rules_are_said_and_shown(browser: Browser, bytewise: Any, tmp_path: Path) -> None:
    actions = Shaping(Statistic("logprob"), "potential_difference", "bootstrap", 1.0)
    discounted = Shaping(Statistic("soft_value", 0.1), "potential_difference", "bootstrap", 0.9)
    zero = Shaping(Statistic("margin"), "potential_difference", "zero", 1.0)
    for name, rule, said, keys in (
        ("actions", actions, "nothing telescopes", ["psi", "logp", "reward"]),
        ("discounted", discounted, "does not telescope", ["psi", "value", "logp", "reward"]),
        ("zero", zero, "the same for both responses", ["psi", "value", "logp", "reward"]),
    ):
        made = make_figures(bytewise, plain_texts(2, 40), rule=rule, ref=False, reward=True)
        page = browser.open(write(tmp_path / f"{name}.html", made))
        assert said in page.locator("#overview").text_content()
        assert page.locator("#switch input").evaluate_all("found => found.map(e => e.value)") == keys
        for position in range(len(keys)):
            page.keyboard.press(str(position + 1))
        page.locator("#pair-1 .side.rejected .t").nth(4).hover()
        assert made.pairs[1].rejected.reward is not None
        assert as_number(panel(page)["running reward"]) == pytest.approx(made.pairs[1].rejected.reward[5], abs=6e-5)
        page.context.close()

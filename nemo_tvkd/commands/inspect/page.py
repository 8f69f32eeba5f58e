"""The page: one HTML file that needs nothing else and in which no string of the data can run.

Strings go in as text alone: jinja2 escapes them in the markup and, as JSON, in data islands that no browser executes;
the script makes text nodes of them, never markup. A Content-Security-Policy with the hashes of the page's own style and
script forbids everything else: other scripts, inline handlers, the network, and (Trusted Types) markup from strings.
"""

import base64
import hashlib
import math
from collections import Counter
from importlib import resources
from typing import Any

import numpy as np

from nemo_tvkd.commands.inspect.numbers import PERCENTILE, Figures, Pair, Response
from nemo_tvkd.commands.inspect.text import visible

DIGITS = 7
"""Significant, of the numbers in the page: those of float32."""
STEPS = 7
"""Shades on each side of 0; page.css has one of each."""


def html(figures: Figures) -> str:
    """The page; every string of the data is escaped."""
    from jinja2 import Environment
    from markupsafe import Markup

    files = resources.files("nemo_tvkd.commands.inspect")
    template, css, js = (files.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js"))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"number": _number, "visible": visible}
    policy = (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return environment.from_string(template).render(
        figures=figures,
        policy=policy,
        css=Markup(css),  # as they are: the policy's hashes are of these very characters
        js=Markup(js),
        steps=STEPS,
        counts=Counter(pair.agrees for pair in figures.pairs),
        telescoping=_telescoping(figures),
        rows=_rows,
        label=_label_margin,
        index=_index(figures),
        island=_island,
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _number(value: float | None) -> str:
    """For people: four decimals, with a true minus."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:.4f}".replace("-", "−")


def _telescoping(figures: Figures) -> str:
    """What telescopes, with the numbers of this page."""
    rule, off = figures.rule, figures.telescoped
    if off is None:
        return "ψₜ is the teacher's number of the token itself: γ, form and terminal do not apply, nothing telescopes."
    responses, unit = 2 * len(figures.pairs), rule.unit
    widest = max(abs(pair.margin) for pair in figures.pairs)
    if not rule.telescopes:
        return (
            f"With γ = {rule.gamma:g} and form = {rule.form} the sum Ψ does not telescope: it depends on every state "
            f"and on the response's length. On this page Ψ differs from V(end) − V(s₁) by up to {off:.4g} {unit}."
        )
    if rule.terminal == "zero":
        return (
            "With γ = 1 the sum telescopes, and with terminal = zero what is left is Ψ = −V(s₁), the same for both "
            f"responses: the largest |shaping margin| of this page is {widest:.2g} {unit}."
        )
    return (
        "With γ = 1 the sum telescopes: Ψ = V(end) − V(s₁), where V(end) is the value behind the last token and V(s₁), "
        "that of the prompt, is the same for both responses of a pair. So the loss sees one number per pair, the "
        "difference of the two last values; how it came about token by token is the picture below. Checked on the "
        f"{responses} responses of this page: the largest "
        f"|Σψ − (V(end) − V(s₁))| is {off:.1g} {unit}, of shaping margins up to {widest:.4g}."
    )


def _label_margin(pair: Pair) -> float | None:
    """The data's reward difference, or its margin."""
    chosen, rejected = pair.chosen.label, pair.rejected.label
    return pair.row.margin if chosen is None or rejected is None else chosen - rejected


def _rows(figures: Figures, pair: Pair) -> list[tuple[str, str, str, str]]:
    """A pair's numbers: (what, chosen, rejected, difference)."""
    unit, (chosen, rejected) = figures.rule.unit, pair.sides
    named = [(f"shaping Ψ, {unit}", chosen.shaping, rejected.shaping)]
    if chosen.value is not None and rejected.value is not None:
        named.append((f"V(s₁), {unit}", chosen.value[0], rejected.value[0]))
        named.append((f"V(end), {unit}", chosen.value[-1], rejected.value[-1]))
    logps = (_total(chosen.logp), _total(rejected.logp))
    named.append(("log π(y|x), nats", *logps))
    if chosen.ref is not None and rejected.ref is not None:
        refs = (_total(chosen.ref), _total(rejected.ref))
        named.append(("log ref(y|x), nats", *refs))
        implicit = [figures.beta * (p - r) for p, r in zip(logps, refs, strict=True)]
        named.append(("implicit reward β (log π − log ref)", implicit[0], implicit[1]))
    if chosen.reward is not None and rejected.reward is not None:
        named.append(("reward model's reward", chosen.reward[-1], rejected.reward[-1]))
    if chosen.label is not None and rejected.label is not None:
        named.append(("reward in the data", chosen.label, rejected.label))
    rows = [(name, _number(float(w)), _number(float(r)), _number(float(w) - float(r))) for name, w, r in named]
    longer = len(chosen.ids) - len(rejected.ids)
    return [*rows, ("tokens", str(len(chosen.ids)), str(len(rejected.ids)), f"{longer:+d}".replace("-", "−"))]


def _total(numbers: np.ndarray) -> float:
    return float(numbers.sum(dtype=np.float64))


def _index(figures: Figures) -> dict[str, Any]:
    """What the page's script needs before it draws any pair."""
    shown = {(pair.margin, len(pair.chosen.ids) - len(pair.rejected.ids)) for pair in figures.pairs}
    others = [[_short(margin), lengths] for margin, lengths in figures.margins if (margin, lengths) not in shown]
    return {
        "beta": figures.beta,
        "unit": figures.rule.unit,
        "steps": STEPS,
        "percentile": PERCENTILE,
        "quantities": [vars(quantity) for quantity in figures.quantities],
        "words": figures.words,
        "others": others[:: max(1, len(others) // 2000)],  # dots that nobody could tell apart
        "pairs": [
            {
                "margin": _short(pair.margin),
                "longer": len(pair.chosen.ids) - len(pair.rejected.ids),
                "agrees": pair.agrees,
            }
            for pair in figures.pairs
        ],
    }


def _island(pair: Pair) -> dict[str, Any]:
    """One pair's text and numbers by token."""
    turns = [[turn["role"], turn["content"]] for turn in pair.turns]
    return {"turns": turns, "sides": [_side(side) for side in pair.sides]}


def _side(side: Response) -> dict[str, Any]:
    names = ("psi", "logp", "value", "ref", "reward")
    arrays = {name: getattr(side, name) for name in names}
    found: dict[str, Any] = {name: [_short(x) for x in a.tolist()] for name, a in arrays.items() if a is not None}
    found |= {"text": side.pieces.texts, "ids": side.ids.tolist()}
    found |= {"bytes": side.pieces.bytes, "special": side.pieces.special}
    if side.top_ids is not None and side.top_p is not None:
        found["top"] = side.top_ids.tolist()
        found["p"] = [[float(f"{p:.3g}") for p in row] for row in side.top_p.tolist()]
    return found


def _short(value: float) -> float | None:
    """Without digits that mean nothing; JSON has no number for what is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None

"""Equations become MathML when the site is built, so that reading them takes neither JavaScript nor a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FUNCTION = re.compile(r"(<mi>(?:log|exp)</mi>)(?!<mo)")
"""The name of a function whose argument has no bracket: a thin space stands between them."""

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **context: Any) -> str:
    """mkdocs' event: the equations that pymdownx.arithmatex marked, `$...$` and `$$...$$`."""

    def mathml(match: re.Match[str]) -> str:
        element, tex = match[1], html.unescape(match[2]).strip()
        made = convert(tex, display="block" if element == "div" else "inline")
        made = FUNCTION.sub(r'\1<mspace width="0.17em" />', made)
        return f'<{element} class="arithmatex">{made}</{element}>'

    return EQUATION.sub(mathml, content)

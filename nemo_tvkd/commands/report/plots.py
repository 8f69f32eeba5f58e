"""Curves as SVG that can stand inside a page: no references out of it, the page's own text colour."""

import io
import re
from typing import Any

from nemo_tvkd.commands.report.contents import Chart

INK = "#010203"
"""Stands for the text colour of the page, light or dark, which matplotlib has no word for."""
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#d946a0", "#8b5cf6", "#b58900", "#06b6d4", "#ef4444")
"""Readable on white and on black."""
VALIDATION = COLOURS[1]
LEGEND_ROWS = 8
"""More tasks than that are told apart by nobody."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#88888855",
    "axes.formatter.limits": (-3, 4),
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def svg(chart: Chart, salt: str) -> str:
    """A chart as one `<svg>` element.

    Args:
        salt: another one for each chart of a page, so that the names inside do not clash.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_title(chart.title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        _draw(axes, chart)
        written = io.StringIO()
        figure.savefig(
            written, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(written.getvalue(), chart.title)


def _draw(axes: Any, chart: Chart) -> None:
    """One task: a colour for training, one for validation; several: a colour each, validation dashed."""
    several = len(chart.curves) > 1
    for index, curve in enumerate(chart.curves):
        colour = COLOURS[index % len(COLOURS)]
        for points, name in ((curve.training, "training"), (curve.validation, "validation")):
            if not points:
                continue
            validation = name == "validation"
            axes.plot(
                *zip(*points, strict=True),
                color=VALIDATION if validation and not several else colour,
                linestyle="--" if validation else "-",
                linewidth=1.4,
                marker="o" if validation or len(points) == 1 else "",
                markersize=4,
                label=f"{curve.label} {name}".strip() if several else name,
            )
    lines = axes.get_lines()
    if 1 < len(lines) <= 2 * LEGEND_ROWS:
        axes.legend(ncols=1 + (len(lines) > 4))


def _inline(text: str, title: str) -> str:
    """Without the XML prologue, fixed size, and names that nothing refers to (they would stand twice on a page)."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    body = rest.replace(INK, "currentColor").replace("'DejaVu Sans', sans-serif", "sans-serif")
    return f'<svg {links} {box[0]} role="img" aria-label="{title}">{body}'

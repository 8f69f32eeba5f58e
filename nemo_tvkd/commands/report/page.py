"""A report as Markdown and as one HTML page that needs nothing else."""

import re

from nemo_tvkd.commands.report.contents import Report, Table

__all__ = ["html", "markdown", "markdown_table"]

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ report.title }}</title>
<style>
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --faint: #667; --line: #d5d9de; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7eb; --page: #14171a; --faint: #9aa3ad; --line: #363c43; --band: #1d2125; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 96rem; color: var(--text); background: var(--page);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; }
.table { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
h3 { font-size: 1rem; font-weight: normal; margin: 1.2rem 0 .2rem; color: var(--faint); }
th, td { padding: .25rem .45rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  font-size: .85rem; }
th { font-weight: 600; vertical-align: bottom; } td { max-width: 26rem; } .number { text-align: right; }
tbody tr, tbody td { background: var(--page); }
tbody tr:nth-child(even), tbody tr:nth-child(even) td { background: var(--band); }
td.number { white-space: nowrap; } td.long { overflow-wrap: anywhere; min-width: 10rem; }
.wide td { white-space: nowrap; } .wide td.number, .wide td.long { white-space: normal; }
.wide td:first-child { position: sticky; left: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.charts svg { display: block; width: 100%; height: auto; }
.notes { padding-left: 1.2rem; }
</style>
</head>
<body>
{% macro show(table, caption) %}
{% set right = numbers(table) %}
{% if caption %}<h3>{{ table.title }}</h3>{% endif %}
<div class="table"><table{% if not caption %} class="wide"{% endif %}>
<thead><tr>
{% for name in table.header %}<th{% if right[loop.index0] %} class="number"{% endif %}>{{ name }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
{% if right[loop.index0] %}
<td class="number">{{ kept(cell) }}</td>
{% else %}
<td{% if cell | length > 26 %} class="long"{% endif %}>{{ cell }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
<h1>{{ report.title }}</h1>
<dl>{% for name, value in report.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<h2>Results</h2>
{{ show(report.results, false) }}
{% if report.notes %}<ul class="notes">{% for note in report.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{% for section in report.sections %}
<section>
<h2>{{ section.title }}</h2>
{% if section.charts %}
<div class="charts">{% for chart in section.charts %}{{ draw(chart) }}{% endfor %}</div>
{% endif %}
{% for table in section.tables %}{{ show(table, true) }}{% endfor %}
</section>
{% endfor %}
</body>
</html>
"""


def html(report: Report) -> str:
    """The page; every string of the data is escaped."""
    from itertools import count

    from jinja2 import Environment
    from markupsafe import Markup

    from nemo_tvkd.commands.report.plots import svg

    charts = count()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE)
    return page.render(
        report=report,
        numbers=_numbers,
        kept=lambda cell: cell.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}±", " ±"),
        draw=lambda chart: Markup(svg(chart, str(next(charts)))),
    )


_NUMBER = re.compile(r"[-–]?[\d.]*(e[-+]?\d+)?(/\d+)?( ± .*| [KMGT]iB| bytes)?")


def _numbers(table: Table) -> list[bool]:
    """Whether there is nothing but numbers in a column."""
    columns = [[row[index] for row in table.rows if row[index]] for index in range(len(table.header))]
    return [bool(cells) and all(map(_NUMBER.fullmatch, cells)) for cells in columns]


def markdown(report: Report) -> str:
    """The same without the curves."""
    lines = [f"# {_plain(report.title)}", ""]
    lines += [f"- {name}: {_plain(value)}" for name, value in report.facts]
    lines += ["", "## Results", "", markdown_table(report.results), ""]
    lines += [f"- {_plain(note)}" for note in report.notes]
    for section in report.sections:
        lines += ["", f"## {_plain(section.title)}"]
        for table in section.tables:
            lines += ["", f"{_plain(table.title)}:", "", markdown_table(table)]
    return "\n".join(lines) + "\n\nThe training curves are in report.html.\n"


def markdown_table(table: Table) -> str:
    """Aligned, so that it can be read as plain text, too."""
    cells = [[_plain(cell) for cell in row] for row in [table.header, *table.rows]]
    widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(table.header))]
    right = _numbers(table)
    lines = [
        "| " + " | ".join(f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _plain(text: str) -> str:
    """Without what Markdown or HTML inside it would take for markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[|])", r"\\\1", text)

"""One look for every HTML report: a self-contained page of text, tables and plots."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import Markup

from raysys.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2f6f8f", "#d1783c", "#5a8f3c", "#8a5aa0", "#b0413e", "#7a7a7a", "#c2a13a", "#3f8f86")
"""For plots, in order; readable beside each other and in print."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { --ink: #1d2733; --soft: #5c6975; --line: #dde3e8; --back: #f6f8f9; --mark: #2f6f8f; }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
       background: var(--back); margin: 0 }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 28px; margin: 0 0 4px } h2 { font-size: 19px; margin: 0 0 10px }
.lead { color: var(--soft); margin: 0 0 24px }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
          padding: 20px 24px; margin: 0 0 20px }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 14px;
         margin: 0 0 16px }
.fact b { display: block; font-size: 23px; color: var(--mark); font-variant-numeric: tabular-nums }
.fact span { color: var(--soft); font-size: 13px }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 6px 8px; border-bottom: 1px solid var(--line);
         vertical-align: top }
td.long { overflow-wrap: anywhere; min-width: 240px }
th { color: var(--soft); font-weight: 600; font-size: 13px }
td.number, th.number { text-align: right; white-space: nowrap }
tr.strong td { font-weight: 700; background: #eef5f8 }
figure { margin: 8px 0 0; overflow-x: auto }
figure svg { width: 100%; min-width: 540px; height: auto; max-height: 520px }
@media (max-width: 720px) { main { padding: 20px 12px 40px } section { padding: 14px } }
figcaption, .note { color: var(--soft); font-size: 13px }
</style></head><body><main>
<h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
{% for part in parts %}<section><h2>{{ part.title }}</h2>
{% for block in part.blocks %}{{ block }}{% endfor %}</section>
{% endfor %}</main></body></html>
"""
_TABLE = """<div class="wide"><table><thead><tr>{% for head in headers %}
<th{% if numeric[loop.index0] %} class="number"{% endif %}>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr{% if loop.index0 in strong %} class="strong"{% endif %}>
{% for cell in row %}<td{% if numeric[loop.index0] %} class="number"
{%- elif cell|string|length > 50 %} class="long"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</tbody></table></div>"""
_FACTS = """<div class="facts">{% for name, value in facts %}<div class="fact"><b>{{ value }}</b>
<span>{{ name }}</span></div>{% endfor %}</div>"""

_environment = Environment(autoescape=True)


@dataclass
class Section:
    """A box of the page; blocks appear in the order they were added."""

    title: str
    blocks: list[Markup] = field(default_factory=list)

    def text(self, text: str) -> Section:
        """A paragraph."""
        self.blocks.append(Markup("<p>{}</p>").format(text))
        return self

    def note(self, text: str) -> Section:
        """A paragraph in small print."""
        self.blocks.append(Markup('<p class="note">{}</p>').format(text))
        return self

    def facts(self, facts: Sequence[tuple[str, object]]) -> Section:
        """Large figures with their names."""
        self.blocks.append(_render(_FACTS, facts=facts))
        return self

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], strong: Sequence[int] = ()
    ) -> Section:
        """A table; columns of numbers are set flush right, rows in `strong` are emphasised.

        A cell that is empty or a dash says nothing of its column.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        numeric = []
        for column in range(len(headers)):
            said = [row[column] for row in rows if row[column] not in (None, "", "–")]
            numeric.append(bool(said) and all(map(_is_number, said)))
        self.blocks.append(
            _render(_TABLE, headers=headers, rows=cells, numeric=numeric, strong=set(strong))
        )
        return self

    def plot(self, figure: Figure, caption: str = "") -> Section:
        """A matplotlib figure as inline SVG; the figure is closed."""
        import matplotlib.pyplot as plt

        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight")
        plt.close(figure)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        self.blocks.append(
            Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(Markup(svg), caption)
        )
        return self


class Report:
    """A page under construction: add sections, then `write`."""

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self.lead = lead
        self.parts: list[Section] = []

    def section(self, title: str) -> Section:
        """Begin a new box."""
        self.parts.append(Section(title))
        return self.parts[-1]

    def html(self) -> str:
        """The page; it needs no other file."""
        return str(_render(_PAGE, title=self.title, lead=self.lead, parts=self.parts))

    def write(self, path: Path) -> None:
        """Write the page."""
        write_atomic(path, self.html())


def new_figure(width: float = 9.0, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure and its axes in the reports' style, on the headless backend."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from cycler import cycler

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "raysys",  # the same data gives the same bytes
            "text.parse_math": False,  # names come from shops: `Gifts $10_$25` is no formula
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6ebef",
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=COLOURS),
        }
    )
    return plt.subplots(figsize=(width, height))


def plain_ticks(axis: Any) -> None:
    """Numbers at the ticks of a logarithmic axis: matplotlib's own labels there are mathtext."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            """Empty where the base has no room for a label."""
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain())


def _render(template: str, **values: object) -> Markup:
    return Markup(_environment.from_string(template).render(**values))


def _is_number(value: object) -> bool:
    if isinstance(value, int | float):
        return True
    return isinstance(value, str) and value[:1] in "+-−0123456789" and value[:1] != ""


def _cell(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value

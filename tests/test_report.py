"""The look of reports: names as the shop writes them, numbers that anybody reads."""

from __future__ import annotations

import re

from raysys.report import Report, new_figure, plain_ticks


def texts_of(page: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", page)


def test_names_with_dollars_are_no_formulas() -> None:
    page = Report("dollars", "")
    names = ["Gifts $10_$25", "$^$", r"$\nothing$"]
    figure, axes = new_figure()
    axes.barh(names, [1, 2, 3], label="arm $x^$")  # its ticks get their text when it is drawn
    axes.set_xticks(range(3), names)
    axes.annotate(names[0], (1, 1))
    axes.legend()
    page.section("bars").plot(figure)
    texts = texts_of(page.html())
    assert all(texts.count(name) >= 2 for name in names) and texts.count(names[0]) == 3
    assert "arm $x^$" in texts


def test_columns_of_numbers_are_flush_right_where_some_have_no_value() -> None:
    page = Report("columns", "")
    rows = [["stopped", "", None, "–"], ["complete", 0.25, 3, "–"]]
    page.section("trials").table(["state", "score", "step", "unknown"], rows)
    heads = re.findall(r"<th( class=\"number\")?>(\w+)</th>", page.html())
    assert [name for number, name in heads if number] == ["score", "step"]


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    page = Report("powers", "")
    figure, axes = new_figure()
    axes.plot([0.0005, 2], [20, 70])
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    page.section("line").plot(figure)
    texts = texts_of(page.html())
    assert {"0.001", "0.01", "0.1", "1"} <= set(texts)
    assert {"20", "30", "40", "60"} <= set(texts)  # no power of ten lies within: those between
    assert not any("$" in text for text in texts)

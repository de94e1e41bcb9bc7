"""Whether a figure reached its aim, as far as the aim's words can be read by a program."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any

_NUMBER = r"(?P<number>-?[\d,]*\.?\d+)"
_AT_LEAST = re.compile(rf"(?:≥|>=|at least) {_NUMBER}(?: |$)")
_AT_MOST = re.compile(rf"(?:≤|<=|at most) {_NUMBER}(?: |$)")
_ABOVE = re.compile(rf"> {_NUMBER}$")
_BELOW = re.compile(rf"< {_NUMBER}$")
_INTERVAL_ABOVE_0 = ("interval above zero", "its interval above 0", "> 0, with its interval")
_EXACTLY = ("0", "1")


def reached(figure: dict[str, Any]) -> bool | None:
    """Whether a figure of a result file is where its aim wants it; None: that is for people.

    Bounds (`≥ 0.85`, `at most .450`, `> 0`), whole counts (`0`, `1`) and intervals above zero are
    read; `0.95` of a rate that chance moves, or `as much for ten times the events`, are not. A gain
    that has an interval is above zero if all of that is.
    """
    aim, value = figure["aim"].strip(), float(figure["value"])
    if aim in _EXACTLY:
        return bool(value == float(aim))
    if aim in _INTERVAL_ABOVE_0:
        return None if figure["low"] is None else bool(figure["low"] > 0)
    if aim == "> 0" and figure["low"] is not None:
        return bool(figure["low"] > 0)
    for pattern, holds in (
        (_AT_LEAST, operator.ge),
        (_AT_MOST, operator.le),
        (_ABOVE, operator.gt),
        (_BELOW, operator.lt),
    ):
        if found := pattern.match(aim):
            return bool(holds(value, float(found["number"].replace(",", ""))))
    return None


def summary(benchmarks: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """A table of Markdown, a line a benchmark (name, content): its aims, reached and missed.

    Returns:
        lines; benchmarks without an aim that can be judged are named below the table.
    """
    lines = [
        "| benchmark | aims reached | not reached |",
        "|---|---:|---|",
    ]
    without = []
    for name, content in benchmarks:
        judged = [(figure, reached(figure)) for figure in content["figures"]]
        judged = [(figure, verdict) for figure, verdict in judged if verdict is not None]
        if not judged:
            without.append(f"[{name}](#{name})")
            continue
        missed = [
            f"`{figure['name']}`: {_with_low(figure)} (aim: {figure['aim']})"
            for figure, verdict in judged
            if not verdict
        ]
        count = f"{len(judged) - len(missed)} of {len(judged)}"
        lines.append(f"| [{name}](#{name}) | {count} | {'<br>'.join(missed)} |")
    if without:
        lines += ["", f"Without an aim that a program can judge: {', '.join(without)}."]
    return lines


def _with_low(figure: dict[str, Any]) -> str:
    """The value; with the low end of its interval where that is what missed."""
    if figure["value"] > 0 and "0" in figure["aim"] and reached(figure | {"low": None}):
        return f"{told(figure['value'])}, from {told(figure['low'])}"
    return told(figure["value"])


def told(value: float) -> str:
    """A figure with four digits, or all those of a whole number: 12,345, never 1.235e+04."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

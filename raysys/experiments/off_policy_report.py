"""The value of a policy as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from raysys.evaluation.intervals import Interval
from raysys.experiments.analysis import without_nan
from raysys.experiments.off_policy import Estimator, LoggedRows, PolicyValue
from raysys.report import COLOURS, Report, new_figure
from raysys.storage import write_atomic

_WORDS = {
    "ips": "inverse propensities: unbiased, noisy",
    "snips": "normalised weights: hardly biased, calmer",
    "clipped": "weights cut: leans towards what was logged",
    "dm": "a model of the reward alone, whose error nothing tells",
    "dr": "the model, corrected by weights: unbiased if either is right",
}


def conclusion(found: Mapping[Estimator, PolicyValue]) -> str:
    """One sentence, by the best estimator there is: doubly robust, else normalised weights."""
    names: tuple[Estimator, ...] = ("dr", "snips", "ips", "clipped", "dm")
    name = next(each for each in names if each in found)
    gain = found[name].gain
    between = f"between {gain.low:+.4g} and {gain.high:+.4g}" if gain.known else "no interval"
    told = f"{gain.value:+.4g} a row ({between}, {name})"
    if gain.low > 0:
        return f"The policy would earn more than the one that was logged: {told}. Try it on users."
    if gain.high < 0:
        return f"The policy would earn less than the one that was logged: {told}."
    return f"The log cannot tell the policy from the one that was logged: {told}."


def ends(interval: Interval) -> str:
    """The ends of an interval in words."""
    if not np.isfinite(interval.low):
        return "not known"
    return f"{interval.low:.3g} to {interval.high:.3g}"


def write_off_policy_report(
    name: str,
    rows: LoggedRows,
    found: Mapping[Estimator, PolicyValue],
    notes: Sequence[str],
    folder: Path,
) -> None:
    """Write `report.html` and `report.json` into `folder`."""
    sentence = conclusion(found)
    values = {each: asdict(value) for each, value in found.items()}
    content = {"policy": name, "verdict": sentence, "values": values, "notes": list(notes)}
    write_atomic(folder / "report.json", json.dumps(without_nan(content), indent=1) + "\n")
    first = next(iter(found.values()))
    page = Report(f"Off-policy value: {name}", "What a policy would have earned on a log.")
    short = page.section("Verdict").text(sentence)
    short.facts(
        [
            ("rows", f"{len(rows):,}"),
            ("rows with a reward", f"{int((rows.reward != 0).sum()):,}"),
            ("rows that the weights are worth", f"{first.effective:,.0f}"),
            ("heaviest weight", f"{first.largest:.4g}"),
        ]
    )
    for note in notes:
        short.text(note)
    section = page.section("Estimates")
    figure, axes = new_figure(9, 0.9 + 0.45 * len(found))
    for place, (each, value) in enumerate(reversed(list(found.items()))):
        colour = COLOURS[0] if each in ("dr", "snips") else COLOURS[5]
        low, high = value.interval.low, value.interval.high
        if np.isfinite(low):
            axes.plot([low, high], [place, place], color=colour, linewidth=3)
        axes.plot([value.interval.value], [place], "o", color=colour)
    axes.axvspan(first.logged.low, first.logged.high, color=COLOURS[1], alpha=0.15, linewidth=0)
    axes.axvline(first.logged.value, color=COLOURS[1], linewidth=1.5)
    axes.set_yticks(range(len(found)), list(found)[::-1])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(False, axis="y")
    section.plot(figure, "Mean reward of a shown slot; orange: what was logged, with its interval.")
    section.table(
        ["estimator", "value", "bootstrap", "normal", "gain over the log", "what it is"],
        [
            (
                each, f"{v.interval.value:.4g}", ends(v.interval),
                ends(v.normal), f"{v.gain.value:+.3g} ({ends(v.gain)})", _WORDS[each],
            )
            for each, v in found.items()
        ],
    )  # fmt: skip
    weight = np.sort(rows.weight)[::-1]
    share = np.cumsum(weight) / max(weight.sum(), 1e-12)
    figure, axes = new_figure(9, 2.8)
    at = np.unique(np.geomspace(1, len(weight), 300).astype(int)) - 1
    axes.plot((at + 1) / len(weight), share[at], color=COLOURS[0])
    axes.plot([0, 1], [0, 1], color=COLOURS[5], linewidth=1)
    axes.set_xlabel("heaviest rows")
    axes.set_ylabel("share of all weight")
    axes.set_ylim(0, 1.02)
    page.section("Weights").plot(
        figure, "How few rows carry the estimate: on the grey line all weigh the same."
    )
    page.write(folder / "report.html")

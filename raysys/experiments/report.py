"""An experiment as a page: the verdict in a sentence, then what it rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysys.experiments.analysis import Comparison, ExperimentAnalysis
from raysys.experiments.statistics import SRM_ALPHA, Effect
from raysys.experiments.verdict import told, verdict
from raysys.report import COLOURS, Report, Section, new_figure
from raysys.storage import write_atomic

_STATE_COLOURS = {
    "better": COLOURS[2], "safe": COLOURS[2], "worse": COLOURS[4], "harmed": COLOURS[4],
    "open": COLOURS[5],
}  # fmt: skip


def write_experiment_report(found: ExperimentAnalysis, folder: Path) -> None:
    """Write `report.html` and `report.json` into `folder`."""
    sentences = verdict(found)
    content = json.dumps({"verdict": sentences, **found.to_dict()}, indent=1, ensure_ascii=False)
    write_atomic(folder / "report.json", content + "\n")
    experiment_report(found).write(folder / "report.html")


def experiment_report(found: ExperimentAnalysis) -> Report:
    """The page."""
    sentences, experiment = verdict(found), found.experiment
    page = Report(f"Experiment: {experiment.name}", experiment.question or "")
    short = page.section("Verdict")
    for sentence in sentences:
        short.text(sentence)
    short.facts(
        [
            ("users", f"{sum(found.users.values()):,}"),
            (f"lift of {experiment.primary}", _short(found.of("primary")[0].relative)),
            ("worth having", f"{experiment.minimum_effect:.1%}"),
            ("data until", "" if found.as_of is None else found.as_of.date().isoformat()),
        ]
    )
    _metrics(page.section("Metrics"), found)
    if len({moment.until for moment in found.moments}) > 1:
        _moments(page.section("As users came"), found)
    _arms(page.section("Arms"), found)
    if found.segments:
        _segments(page.section("Segments"), found)
    _method(page.section("How it was judged"), found)
    return page


def _metrics(section: Section, found: ExperimentAnalysis) -> None:
    several = len(found.users) > 2
    names = [f"{c.metric}, {c.arm}" if several else c.metric for c in found.comparisons]
    figure, axes = new_figure(9, 0.9 + 0.42 * len(names))
    _forest(
        axes,
        names,
        [c.relative for c in found.comparisons],
        [_STATE_COLOURS[c.state] for c in found.comparisons],
    )
    axes.axvline(
        found.sign * found.experiment.minimum_effect, color=COLOURS[0], linewidth=1, linestyle=":"
    )
    section.plot(
        figure,
        "Relative lifts over the control with their intervals: green is clearly good, red clearly "
        "bad, grey open. Dotted: the effect that is worth having.",
    )
    headers = ["metric", "role", "arm", "control", "treatment", "lift", "p", "adjusted p", ""]
    section.table(
        headers,
        [_row(c) for c in found.comparisons],
        strong=[at for at, c in enumerate(found.comparisons) if c.role == "primary"],
    )
    cuts = {c.metric: c.cuped for c in found.comparisons if c.cuped is not None}
    if cuts:
        told_ = ", ".join(f"{name} {cut.variance_cut:.0%}" for name, cut in cuts.items())
        section.note(f"Variance that what users did before explains, and CUPED removed: {told_}.")


def _row(c: Comparison) -> Sequence[object]:
    return (
        c.metric, c.role, c.arm, f"{c.control.plain_mean:.5g}", f"{c.treatment.plain_mean:.5g}",
        told(c.relative) if np.isfinite(c.relative.value) else "none",
        f"{c.absolute.p_value:.2g}", f"{c.p_adjusted:.2g}", c.state,
    )  # fmt: skip


def _forest(
    axes: Any, names: Sequence[str], effects: Sequence[Effect], colours: Sequence[str]
) -> None:
    places = np.arange(len(names))[::-1]
    for place, effect, colour in zip(places, effects, colours, strict=True):
        if np.isfinite(effect.low):
            axes.plot([effect.low, effect.high], [place, place], color=colour, linewidth=3)
            axes.plot([effect.value], [place], "o", color=colour)
    axes.axvline(0, color="#1d2733", linewidth=1)
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}" if value else "0")


def _moments(section: Section, found: ExperimentAnalysis) -> None:
    figure, axes = new_figure(9, 3.2)
    bound = 0.0
    for arm, colour in zip(list(found.users)[1:], COLOURS, strict=False):
        mine = [m for m in found.moments if m.arm == arm]
        when = [m.until for m in mine]
        low, high = [m.relative.low for m in mine], [m.relative.high for m in mine]
        axes.fill_between(when, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(when, [m.relative.value for m in mine], color=colour, label=arm)
        settled = [
            abs(end) for m in mine[len(mine) // 4 :] for end in (m.relative.low, m.relative.high)
        ]
        bound = max(bound, *settled)
    axes.axhline(0, color="#1d2733", linewidth=1)
    axes.axhline(
        found.sign * found.experiment.minimum_effect, color=COLOURS[0], linewidth=1, linestyle=":"
    )
    axes.set_ylim(-1.1 * bound, 1.1 * bound)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0%}" if value else "0")
    figure.autofmt_xdate()
    axes.legend(frameon=False, loc="upper right")
    held = "it may be looked at every day" if found.experiment.analysis == "sequential" else (
        "only its end decides"
    )  # fmt: skip
    section.plot(
        figure,
        f"Lift of {found.experiment.primary} among the users that had come until then, with its "
        f"interval; {held}.",
    )


def _arms(section: Section, found: ExperimentAnalysis) -> None:
    total = sum(found.users.values())
    shares = {arm.name: float(arm.share / sum(a.share for a in found.experiment.arms))
              for arm in found.experiment.arms}  # fmt: skip
    section.table(
        ["arm", "users", "share", "promised", "bundle"],
        [
            (name, count, f"{count / total:.2%}", f"{shares[name]:.2%}",
             found.experiment.arm[name].bundle or "")
            for name, count in found.users.items()
        ],
    )  # fmt: skip
    state = "as promised" if found.trusted else "NOT as promised"
    section.text(
        f"Arms are filled {state} (sample ratio: p = {found.srm_p:.2g}; below {SRM_ALPHA} means "
        "that something is broken)."
    )
    section.note(
        f"Left out: {found.crossed:,} users seen in more than one arm, {found.forced:,} testers, "
        f"{found.unfinished:,} whose window is not over."
    )


def _segments(section: Section, found: ExperimentAnalysis) -> None:
    several = len(found.users) > 2
    names = [f"{s.attribute} {s.value}" + (f", {s.arm}" if several else "") for s in found.segments]
    colours = [
        COLOURS[5] if s.p_adjusted > found.experiment.alpha
        else COLOURS[2] if s.relative.value * found.sign > 0 else COLOURS[4]
        for s in found.segments
    ]  # fmt: skip
    figure, axes = new_figure(9, 0.9 + 0.36 * len(names))
    _forest(axes, names, [s.relative for s in found.segments], colours)
    section.plot(
        figure,
        f"Lift of {found.experiment.primary} by segment. Coloured where it is clear after "
        "correction over all segments (Benjamini-Hochberg).",
    )
    for attribute, by_arm in found.heterogeneity.items():
        for arm, p_value in by_arm.items():
            differs = p_value <= found.experiment.alpha
            section.text(
                f"{arm}: the lift {'differs' if differs else 'is not shown to differ'} between "
                f"segments of {attribute} (p = {p_value:.2g}, for one look)."
            )
    section.note("Differences between segments say where to look next, not whom to give what.")


def _method(section: Section, found: ExperimentAnalysis) -> None:
    experiment = found.experiment
    sure = f"{1 - experiment.alpha:.0%}"
    if experiment.analysis == "sequential":
        section.text(
            f"Intervals are always valid: with {sure} confidence they hold at all looks together "
            "(asymptotic confidence sequences, Waudby-Smith et al. 2024)."
        )
    else:
        section.text(f"Intervals are Welch's at {sure}, valid for one look at the planned end.")
    section.note(
        "The user is the unit: ratio metrics by the delta method. Primary: intervals over all "
        "arms together, p-values after Holm; secondary metrics after Benjamini-Hochberg; "
        "guardrails uncorrected, as each of them has to hold."
    )
    for note in found.notes:
        section.note(note)


def _short(effect: Effect) -> str:
    return f"{effect.value:+.1%}" if np.isfinite(effect.value) else "none"

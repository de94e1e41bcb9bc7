"""The curve of position bias, as a section of a report and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysys.features.position_bias import Propensities
from raysys.report import COLOURS, Report, Section, new_figure


def write_position_report(
    estimates: Sequence[Propensities],
    path: Path,
    *,
    truth: npt.NDArray[np.float64] | None = None,
    surface: str = "",
) -> None:
    """Write a self-contained HTML page.

    Args:
        estimates: one or more, of one log.
        path: of the page; replaced atomically.
        truth: float64[k], the true propensities where a simulation knows them.
        surface: what the log is of, for the title.
    """
    report = Report(
        f"Position bias{f' of {surface}' if surface else ''}",
        "How likely each position is looked at, in parts of position 1, estimated from clicks.",
    )
    add_position_section(report.section("Propensity by position"), estimates, truth)
    report.write(path)


def add_position_section(
    section: Section,
    estimates: Sequence[Propensities],
    truth: npt.NDArray[np.float64] | None = None,
) -> None:
    """Add the curve with its intervals and a table; see `write_position_report`."""
    figure, axes = new_figure()
    for at, estimate in enumerate(estimates):
        place = np.arange(1, len(estimate.value) + 1)
        colour = COLOURS[at % len(COLOURS)]
        axes.plot(place, estimate.value, marker="o", ms=4, color=colour, label=estimate.method)
        axes.fill_between(place, estimate.low, estimate.high, color=colour, alpha=0.15, lw=0)
    if truth is not None:
        place = np.arange(1, len(truth) + 1)
        axes.plot(place, truth / truth[0], color="#1d2733", ls="--", lw=1, label="truth")
    axes.set(xlabel="position", ylabel="propensity", ylim=(0, None))
    axes.legend(frameon=False)
    section.plot(figure, "Shaded: intervals of the bootstrap.")
    rows = [
        (
            estimate.method,
            at + 1,
            int(estimate.impressions[at]),
            int(estimate.clicks[at]),
            _number(estimate.value[at]),
            _interval(estimate.low[at], estimate.high[at]),
        )
        for estimate in estimates
        for at in range(len(estimate.value))
    ]
    section.table(("method", "position", "impressions", "clicks", "propensity", "interval"), rows)
    if any(not np.isfinite(estimate.value).all() for estimate in estimates):
        section.note(
            "Without a propensity: positions whose items were never shown at another position "
            "that leads to the first, so the log cannot tell relevance from position."
        )


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "unknown"


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} – {high:.3f}" if np.isfinite(low) else ""

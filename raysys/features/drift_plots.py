"""Plots of drift: shares of two periods side by side, over the bins that PSI is counted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysys.features.drift import Histogram
from raysys.report import COLOURS, Section, new_figure


def histograms(
    section: Section, shown: Sequence[tuple[str, Histogram]], periods: tuple[str, str]
) -> None:
    """Add one plot of several features.

    Args:
        section: gets it.
        shown: of each its title and shares; bins that are empty in both periods are left out.
        periods: the two in words.
    """
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = new_figure(12, 0.6 + 3.0 * rows)
    axes.remove()
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for (title, histogram), part in zip(shown, grid, strict=False):
        both = list(zip(histogram.reference, histogram.current, strict=True))
        used = [at for at, shares in enumerate(both) if max(shares) > 0]
        places = np.arange(len(used))
        for step, colour, shares, label in (
            (-0.2, COLOURS[0], histogram.reference, periods[0]),
            (0.2, COLOURS[1], histogram.current, periods[1]),
        ):
            part.bar(places + step, [shares[at] for at in used], 0.4, color=colour, label=label)
        labels = [histogram.labels[at] for at in used]
        part.set_xticks(places, labels, rotation=60, ha="right", fontsize=8)
        part.grid(axis="x", visible=False)
        part.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        part.set_title(title, fontsize=10, loc="left")
    for part in grid[len(shown) :]:
        part.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=2, loc="upper left")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    section.plot(
        figure,
        "Features with the largest PSI: shares of the sampled candidates in the bins that it is "
        "counted on.",
    )

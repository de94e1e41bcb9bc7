"""The serving section of docs/benchmarks.md: servers side by side, and a plot of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.result import ROOT

PLOT = ROOT / "docs" / "benchmarks-serving.svg"
LABELS = {
    "uvicorn": "FastAPI on uvicorn",
    "serve_haproxy": "raysys on Serve, HAProxy",
    "serve": "raysys on Serve, default proxy",
    "litserve": "LitServe",
    "bentoml": "BentoML",
}
_RATE = re.compile(rf"(rank|recommend|search)_({'|'.join(LABELS)})_per_s_(\d+)")


def rates(figures: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Figures of requests a second by surface, server and connections."""
    found = {}
    for figure in figures:
        if said := _RATE.fullmatch(figure["name"]):
            found[said[1], said[2], int(said[3])] = figure
    return found


def table(figures: list[dict[str, Any]]) -> list[str]:
    """Requests a second and, in brackets, milliseconds of 99%, by server; nothing without any."""
    known = rates(figures)
    if not known:
        return []
    by_name = {figure["name"]: figure["value"] for figure in figures}
    columns = sorted({(surface, n) for surface, _, n in known})
    parts = [
        "Requests a second and, in brackets, the 99th percentile of their milliseconds, by surface "
        "and connections:\n",
        f"| | {' | '.join(f'{surface}, {n}' for surface, n in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for server, label in LABELS.items():
        cells = []
        for surface, n in columns:
            figure = known.get((surface, server, n))
            p99 = by_name.get(f"{surface}_{server}_p99_ms_{n}")
            said = "–" if figure is None else f"{figure['value']:.0f}"
            cells.append(said if p99 is None else f"{said} ({p99:.0f})")
        if any(cell != "–" for cell in cells):
            parts.append(f"| {label} | {' | '.join(cells)} |")
    return [*parts, "", f"![Requests a second by server and connections]({PLOT.name})", ""]


def plot(figures: list[dict[str, Any]], path: Path = PLOT) -> None:
    """Requests a second of /v1/rank over connections, with the least and most of the runs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    known = {
        (server, n): figure
        for (surface, server, n), figure in rates(figures).items()
        if surface == "rank"
    }
    if not known:
        return
    connections = sorted({n for _, n in known})
    colours = ("#9ca3af", "#2563eb", "#93c5fd", "#d97706", "#059669")
    with mpl.rc_context({"svg.hashsalt": "raysys", "svg.fonttype": "none", "font.size": 10}):
        canvas, axes = plt.subplots(figsize=(6.4, 3.8))
        shown = [name for name in LABELS if any(server == name for server, _ in known)]
        width = 0.8 / len(shown)
        for place, server in enumerate(shown):
            some = [known.get((server, n)) for n in connections]
            at = [x + (place - (len(shown) - 1) / 2) * width for x in range(len(connections))]
            there = [(x, figure) for x, figure in zip(at, some, strict=True) if figure]
            values = [figure["value"] for _, figure in there]
            spread = [
                [figure["value"] - figure["low"] for _, figure in there],
                [figure["high"] - figure["value"] for _, figure in there],
            ]
            axes.bar(
                [x for x, _ in there], values, width, yerr=spread, label=LABELS[server],
                color=colours[list(LABELS).index(server)], error_kw={"linewidth": 0.8},
            )  # fmt: skip
        axes.set_xticks(range(len(connections)), [str(n) for n in connections])
        axes.set(xlabel="connections", ylabel="requests a second, /v1/rank")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1))
        canvas.tight_layout()
        canvas.savefig(path, metadata={"Date": None})
        plt.close(canvas)

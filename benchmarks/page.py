"""Write docs/benchmarks.md and the README's figures from the JSON results, never by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import serving_page
from benchmarks.aims import summary, told
from benchmarks.events_at_scale import rows_of
from benchmarks.result import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks-ingest.svg"
README = ROOT / "README.md"
MARKS = re.compile(r"(<!-- figures -->).*(<!-- /figures -->)", re.DOTALL)
HEAD = """# Benchmarks

Measured by scripts in `benchmarks/`, written by them as JSON beside the machine's facts; this page
is generated from those files with `python -m benchmarks.page`. `make bench` lists the scripts.

## In short

"""
NOTES = """
Aims are what we want, whether it is reached or not; every figure has its interval, its unit and
what it is compared with below. Low – high is a 95% interval, or the least and most over runs.
"""


def page(folder: Path = RESULTS) -> str:
    """The page as Markdown: a section a result file."""
    contents = {
        path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    }
    parts = [HEAD.rstrip("\n") + "\n"]
    parts += summary((path.stem, content) for path, content in contents.items())
    parts.append(NOTES)
    for path, content in contents.items():
        machine = content["machine"]
        facts = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB"
        parts.append(f"## {path.stem}\n")
        parts.append(
            f"`{content['command']}` took {content['seconds']:.0f} s on {content['date']} "
            f"(commit {content['commit']}; {facts}, GPU: {machine['gpu'] or 'none'}).\n"
        )
        if path.stem == "ingest":
            parts += scale(content["figures"])
        if path.stem == "serving":
            parts += serving_page.table(content["figures"])
        if (PAGE.parent / f"{path.stem}.svg").is_file():
            parts.append(f"![{path.stem}]({path.stem}.svg)\n")
        parts.append("| figure | value | low – high | unit | aim | compared with |")
        parts.append("|---|---:|---:|---|---|---|")
        for figure in content["figures"]:
            low, high = figure["low"], figure["high"]
            spread = "" if low is None else f"{told(low)} – {told(high)}"
            parts.append(
                f"| `{figure['name']}` | {told(figure['value'])} | {spread} | {figure['unit']} "
                f"| {figure['aim']} | {figure['reference']} |"
            )
        parts.append("")
    return "\n".join(parts)


def scale(figures: list[dict[str, Any]]) -> list[str]:
    """The log at scale as a table by size, raysys beside the polars program, and the plot."""
    by_name = {figure["name"]: figure for figure in figures}

    def cell(name: str, form: str = ".3g") -> str:
        figure = by_name.get(name)
        return "–" if figure is None else format(figure["value"], form)

    parts = [
        "| events | events/s | seconds | peak GB | polars: seconds | peak GB | polars ÷ raysys |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size in sizes(figures):
        cells = [
            cell(f"events_per_s_{size}", ",.0f"),
            cell(f"seconds_{size}"),
            cell(f"peak_gb_{size}"),
            cell(f"polars_seconds_{size}"),
            cell(f"polars_peak_gb_{size}"),
            cell(f"ratio_polars_{size}"),
        ]
        failed = by_name.get(f"polars_peak_gb_{size}", {}).get("reference", "")
        if failed and cells[3] == "–":
            cells[3] = failed
        parts.append(f"| {size} | {' | '.join(cells)} |")
    return [*parts, "", f"![Seconds over events, on logarithmic axes]({PLOT.name})", ""]


def sizes(figures: list[dict[str, Any]]) -> list[str]:
    """The sizes of logs that figures speak of, smallest first."""
    marked = "events_per_s_"
    found = [f["name"].removeprefix(marked) for f in figures if f["name"].startswith(marked)]
    return sorted(found, key=rows_of)


def plot(figures: list[dict[str, Any]], path: Path = PLOT) -> None:
    """Seconds over events of raysys and of the polars program, both axes logarithmic, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    value = {figure["name"]: figure["value"] for figure in figures}
    look = {"svg.hashsalt": "raysys", "svg.fonttype": "none", "font.size": 10}
    with mpl.rc_context(look):
        canvas, axes = plt.subplots(figsize=(6.4, 3.8))
        for label, name, colour, mark in (
            ("raysys", "seconds", "#2563eb", "o"),
            ("one polars program", "polars_seconds", "#d97706", "s"),
        ):
            points = [
                (rows_of(size), value[f"{name}_{size}"])
                for size in sizes(figures)
                if f"{name}_{size}" in value
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=mark, label=label)
        known = [(rows_of(s), value[f"seconds_{s}"]) for s in sizes(figures)]
        ends = np.array([known[0][0], known[-1][0]])
        axes.plot(
            *(ends, ends / 300_000), color="#9ca3af", linestyle=":", label="300,000 events a second"
        )
        axes.set(xscale="log", yscale="log", xlabel="events", ylabel="seconds")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1e6:g} M"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        axes.grid(which="major", color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        canvas.tight_layout()
        canvas.savefig(path, metadata={"Date": None})
        plt.close(canvas)


def readme(folder: Path = RESULTS) -> str:
    """The README with what the demo reached, between its marks."""
    demo = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    figures = {figure["name"]: figure for figure in demo["figures"]}
    machine = demo["machine"]
    minutes, peak = figures["minutes"]["value"], figures["peak_gb"]["value"]
    parts = [
        f"`make demo` after installation: {minutes:.1f} minutes and {peak:.1f} GB at most, on "
        f"{machine['cores']} cores ({machine['cpu']}). NDCG@10 on the last four weeks, which "
        "nothing was fitted on:\n",
        "| | kind | NDCG@10 | 95% interval |",
        "|---|---|---:|---|",
    ]
    for name, figure in figures.items():
        if name.startswith("ndcg10_") and figure["reference"] != "fallback":
            name = name.removeprefix("ndcg10_")
            name = f"**{name}**" if name == "ensemble" else f"`{name}`"
            interval = f"{figure['low']:.4f} – {figure['high']:.4f}"
            parts.append(f"| {name} | {figure['reference']} | {figure['value']:.4f} | {interval} |")
    gain = figures["gain"]
    parts.append(
        f"\nThe ensemble's {gain['reference']}: {gain['value']:+.4f} "
        f"(95% interval {gain['low']:+.4f} to {gain['high']:+.4f}). "
        "More figures: [benchmarks](docs/benchmarks.md)."
    )
    block = "\n".join(parts)
    text = README.read_text(encoding="utf-8")
    return MARKS.sub(lambda found: f"{found[1]}\n{block}\n{found[2]}", text)


def main() -> None:
    """Write the page and the README's figures."""
    at_scale = RESULTS / "ingest.json"
    if at_scale.is_file():
        plot(json.loads(at_scale.read_text(encoding="utf-8"))["figures"])
    serving = RESULTS / "serving.json"
    if serving.is_file():
        serving_page.plot(json.loads(serving.read_text(encoding="utf-8"))["figures"])
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)} and {README.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

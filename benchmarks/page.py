"""Write docs/benchmarks.md and the README's figures from the JSON results, never by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.result import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
MARKS = re.compile(r"(<!-- figures -->).*(<!-- /figures -->)", re.DOTALL)
HEAD = """# Benchmarks

Measured by scripts in `benchmarks/`, written by them as JSON beside the machine's facts; this page
is generated from those files with `python -m benchmarks.page`. `make bench` lists the scripts.
"""


def page(folder: Path = RESULTS) -> str:
    """The page as Markdown: a section a result file."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        machine = content["machine"]
        facts = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB"
        parts.append(f"## {path.stem}\n")
        parts.append(
            f"`{content['command']}` took {content['seconds']:.0f} s on {content['date']} "
            f"(commit {content['commit']}; {facts}, GPU: {machine['gpu'] or 'none'}).\n"
        )
        parts.append("| figure | value | low – high | unit | aim | compared with |")
        parts.append("|---|---:|---:|---|---|---|")
        for figure in content["figures"]:
            low, high = figure["low"], figure["high"]
            spread = "" if low is None else f"{low:.4g} – {high:.4g}"
            parts.append(
                f"| `{figure['name']}` | {figure['value']:.4g} | {spread} | {figure['unit']} "
                f"| {figure['aim']} | {figure['reference']} |"
            )
        parts.append("")
    return "\n".join(parts)


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
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)} and {README.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

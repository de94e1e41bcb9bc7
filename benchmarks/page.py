"""Write docs/benchmarks.md from the JSON results: figures in the docs are never typed."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.result import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
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


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

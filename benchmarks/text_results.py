"""One result file of the text tasks, `text.json`, that several scripts fill, each its own part.

A script writes `results/text/SCRIPT.json`, the same format as any result; `text.json` is all the
parts together, so that a script that runs again replaces its own figures and nobody else's.
`python -m benchmarks.text_results` puts the parts together, after a merge of branches say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import result
from benchmarks.result import Figure


def write_text_result(figures: list[Figure], seconds: float, part: str = "") -> Path:
    """Write the part of the script that runs, and `text.json` anew.

    A script that can measure one of several things gives each a part of its own.
    """
    (result.RESULTS / "text").mkdir(parents=True, exist_ok=True)
    name = "-".join(filter(None, (Path(sys.argv[0]).stem, part)))
    path = result.write_result(f"text/{name}", figures, seconds)
    merge_text_results(result.RESULTS)
    return path


def merge_text_results(folder: Path = result.RESULTS) -> Path:
    """Write `text.json` from its parts: commands in a row, seconds summed, figures in order.

    Raises:
        ValueError: two parts have a figure of one name, or the parts are of several machines.
    """
    parts = [json.loads(p.read_text("utf-8")) for p in sorted((folder / "text").glob("*.json"))]
    figures = [figure for part in parts for figure in part["figures"]]
    names = [figure["name"] for figure in figures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"more than one part has {', '.join(twice)}")
    machines = [part["machine"] for part in parts]
    if any(machine["cpu"] != machines[0]["cpu"] for machine in machines):
        raise ValueError("the parts were measured on different machines")
    content = {
        "command": " && ".join(part["command"] for part in parts),
        "commit": ", ".join(dict.fromkeys(part["commit"] for part in parts)),
        "date": max(part["date"] for part in parts),
        "machine": machines[0],
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "figures": figures,
    }
    path = folder / "text.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(f"written to {merge_text_results().relative_to(result.ROOT)}")

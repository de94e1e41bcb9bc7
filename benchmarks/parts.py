"""One result file that several scripts fill, each its own part: `results/NAME/PART.json`.

`NAME.json` is all the parts together, so that a script that runs again replaces its own figures
and nobody else's. `python -m benchmarks.parts` puts every such file together, after a merge of
branches say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import result
from benchmarks.result import Figure

NAMES = ("loop", "rankings", "serving", "text", "text_gpu")


def write_part(name: str, figures: list[Figure], seconds: float, part: str = "") -> Path:
    """Write the part of the script that runs, and `NAME.json` anew.

    A script that can measure one of several things gives each a part of its own.
    """
    (result.RESULTS / name).mkdir(parents=True, exist_ok=True)
    stem = "-".join(filter(None, (Path(sys.argv[0]).stem, part)))
    path = result.write_result(f"{name}/{stem}", figures, seconds)
    merge_parts(name, result.RESULTS)
    return path


def write_rankings_result(figures: list[Figure], seconds: float, part: str = "") -> Path:
    """Write a part of `rankings.json`."""
    return write_part("rankings", figures, seconds, part)


def write_loop_result(part: str, figures: list[Figure], seconds: float) -> Path:
    """Write a part of `loop.json` under its own name, whatever script measures it."""
    return _write_own("loop", part, figures, seconds)


def write_serving_result(part: str, figures: list[Figure], seconds: float) -> Path:
    """Write a part of `serving.json` under its own name."""
    return _write_own("serving", part, figures, seconds)


def _write_own(name: str, part: str, figures: list[Figure], seconds: float) -> Path:
    (result.RESULTS / name).mkdir(parents=True, exist_ok=True)
    path = result.write_result(f"{name}/{part}", figures, seconds)
    merge_parts(name, result.RESULTS)
    return path


def merge_parts(name: str, folder: Path = result.RESULTS) -> Path:
    """Write `NAME.json` from its parts: commands in a row, seconds summed, figures in order.

    Figures of one part compare with each other. Where parts are of several machines, the merged
    machine's `cpu` says which parts are of which.

    Raises:
        ValueError: two parts have a figure of one name.
    """
    files = sorted((folder / name).glob("*.json"))
    parts = [json.loads(path.read_text("utf-8")) for path in files]
    figures = [figure for part in parts for figure in part["figures"]]
    names = [figure["name"] for figure in figures]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise ValueError(f"more than one part has {', '.join(twice)}")
    of_cpu: dict[str, list[str]] = {}
    for path, part in zip(files, parts, strict=True):
        of_cpu.setdefault(part["machine"]["cpu"], []).append(path.stem)
    machine = dict(parts[0]["machine"])
    if len(of_cpu) > 1:
        machine["cpu"] = "; ".join(f"{cpu}: {', '.join(stems)}" for cpu, stems in of_cpu.items())
    content = {
        "command": " && ".join(part["command"] for part in parts),
        "commit": ", ".join(dict.fromkeys(part["commit"] for part in parts)),
        "date": max(part["date"] for part in parts),
        "machine": machine,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "figures": figures,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    for each in NAMES:
        if (result.RESULTS / each).is_dir():
            print(f"written to {merge_parts(each).relative_to(result.ROOT)}")

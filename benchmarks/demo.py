"""The whole system from nothing: minutes and memory of `raysys demo`, and what its ensemble gains.

About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import tree_memory
from benchmarks.result import Figure, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, help="default: a new temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = arguments.workspace or Path(folder) / "demo"
        started = time.monotonic()
        command = [sys.executable, "-m", "raysys", "demo", "--exit", "--workspace", str(workspace)]
        process = subprocess.Popen(command)
        peak = 0
        while process.poll() is None:
            looked = time.monotonic()
            peak = max(peak, tree_memory(process.pid))  # halts whoever is looked at
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(1.0, 19 * (time.monotonic() - looked)))
        seconds = time.monotonic() - started
        if process.returncode:
            raise SystemExit(process.returncode)
        report = json.loads((workspace / "evaluate" / "report.json").read_text())
    write_result("demo", figures(report, seconds, peak), seconds)


def figures(report: dict, seconds: float, peak: int) -> list[Figure]:
    """The figures that others rely on by name."""
    best_name = report["best_single"]
    ensemble = report["scorers"]["ensemble"]["metrics"]["ndcg@10"]
    best = report["scorers"][best_name]["metrics"]["ndcg@10"]
    gain = report["ensemble_minus"][best_name]
    return [
        Figure("minutes", seconds / 60, "min", aim="≤ 10"),
        Figure("peak_gb", peak / 2**30, "GB", aim="≤ 8"),
        Figure("ensemble_ndcg10", ensemble["value"], "", ensemble["low"], ensemble["high"]),
        Figure(
            *("best_single_ndcg10", best["value"], "", best["low"], best["high"]),
            reference=best_name,
        ),
        Figure(
            *("gain", gain["value"], "", gain["low"], gain["high"]),
            aim="> 0, with its interval",
            reference=f"paired difference to {best_name}",
        ),
        *(
            Figure(f"ndcg10_{name}", each["value"], "", each["low"], each["high"], reference=kind)
            for name, kind, each in sorted(scorers(report), key=lambda row: -row[2]["value"])
        ),
    ]


def scorers(report: dict) -> Iterator[tuple[str, str, dict]]:
    """Name, kind and NDCG@10 of everything that was judged."""
    for name, scorer in report["scorers"].items():
        yield name, scorer["kind"], scorer["metrics"]["ndcg@10"]


if __name__ == "__main__":
    main()

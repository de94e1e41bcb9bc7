"""Complete Journey, its last four weeks: every member, the ensemble, and what it gains.

Seconds where `raysys demo` has finished in the workspace; else about 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.parts import write_rankings_result
from benchmarks.result import ROOT, Figure

REPORT = Path("evaluate") / "report.json"
METRICS = {"ndcg@10": "ndcg10", "recall@10": "recall10"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / "demo")
    arguments = parser.parse_args()
    started = time.monotonic()
    workspace: Path = arguments.workspace
    if not (workspace / REPORT).is_file():
        command = [sys.executable, "-m", "raysys", "demo", "--exit", "--workspace", str(workspace)]
        subprocess.run(command, check=True)
    seconds = time.monotonic() - started + stages_took(workspace)
    report = json.loads((workspace / REPORT).read_text(encoding="utf-8"))
    write_rankings_result(figures(report), seconds, "complete_journey")


def stages_took(workspace: Path) -> float:
    """Seconds of the stages of an earlier run, as their manifests say."""
    names = ("ingest", "features", "tune", "train", "evaluate")
    manifests = [workspace / name / "manifest.json" for name in names]
    told = [json.loads(path.read_text("utf-8")) for path in manifests if path.is_file()]
    return sum(float(manifest.get("seconds", 0.0)) for manifest in told)


def figures(report: dict[str, Any]) -> list[Figure]:
    """The table of all members, and the ensemble's paired gain over the best of them."""
    best, scorers = report["best_single"], report["scorers"]
    gain = report["ensemble_minus"][best]
    method = report["methods"]["full"].replace("_", " ")
    found = []
    for metric, short in METRICS.items():
        value = scorers["ensemble"]["metrics"][metric]
        found.append(
            Figure(
                *(f"completejourney_{short}", value["value"], "", value["low"], value["high"]),
                reference=f"the ensemble ({method})",
            )
        )
    found.append(
        Figure(
            *("completejourney_gain", gain["value"], "", gain["low"], gain["high"]),
            aim="> 0, with its interval",
            reference=f"in NDCG@10, paired difference to {best}",
        )
    )
    for name, scorer in scorers.items():
        if name == "ensemble":
            continue
        for metric, short in METRICS.items():
            value = scorer["metrics"][metric]
            found.append(
                Figure(
                    f"completejourney_{short}_{name}", value["value"], "", value["low"],
                    value["high"], reference=scorer["kind"],
                )
            )  # fmt: skip
    for name, milliseconds in report.get("latency_ms", {}).items():
        found.append(
            Figure(
                *(f"completejourney_ms_{name}", milliseconds, "ms"),
                reference="100 candidates, one thread",
            )
        )
    return found


if __name__ == "__main__":
    main()

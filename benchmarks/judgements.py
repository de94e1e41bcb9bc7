"""Judged pairs of query and product, unseen queries: Home Depot, as any such file is ranked.

About an hour. It runs what `raysys benchmark relevance` runs, settings chosen by itself within the
time, and needs the data that RAYSYS_DATA names.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from benchmarks.parts import write_rankings_result
from benchmarks.result import Figure
from benchmarks.sequences import data
from raysys.stages import benchmark_relevance

AIMS = {"ndcg10": "at least .930", "rmse": "at most .450"}
FLOORS = {
    "ndcg10": "MiniLM zero-shot .920, measured by us",
    "rmse": "LightGBM on 7 features .471, measured by us",
}


def measured(minutes: float) -> dict[str, Any]:
    """The report of the whole file."""
    return benchmark_relevance.run(
        data() / "search" / "home_depot.csv.gz",
        query_col="search_term",
        text_cols=("product_title",),
        label_col="relevance",
        minutes=minutes,
    )


def figures(report: dict[str, Any], note: str = "") -> list[Figure]:
    """Of the ensemble, of its gain over its best member, and of every member."""
    found = []

    def told(label: str, value: dict[str, float], aim: str = "", reference: str = "") -> None:
        ends = value["low"], value["high"]
        found.append(Figure(f"homedepot_{label}", value["value"], "", *ends, aim, reference))

    judged = f"{report['judged_queries']:,} unseen queries of 5 products or more"
    members = ", ".join(report["members"])
    circumstances = "; ".join(filter(None, (f"ensemble of {members}", judged, note)))
    for measure, aim in AIMS.items():
        reference = f"{FLOORS[measure]}; {circumstances}"
        told(measure, report["ensemble"][measure], aim, reference)
    over = f"NDCG@10, paired, over {report['best_member']}, {judged}"
    told("gain", report["gain"], "interval above zero", over)
    for member, values in report["members"].items():
        seconds = f"this member alone, {values['seconds']:,.0f} s"
        for measure in AIMS:
            told(f"{measure}_{member}", values[measure], "", seconds)
    return found


def main() -> None:
    """Run it, or write a report that `raysys benchmark relevance … --out` left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--report", type=Path, help="of a run of the same command before")
    parser.add_argument("--note", default="", help="of the circumstances, kept beside figures")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.report is not None:
        report = json.loads(given.report.read_text(encoding="utf-8"))
        sys.argv[1:] = ["--minutes", f"{report['minutes_given']:g}"]  # what made it
    else:
        report = measured(given.minutes)
    write_rankings_result(figures(report, given.note), report["seconds"], "home_depot")


if __name__ == "__main__":
    main()

"""The next item on public data: Diginetica (sessions) and Beauty (leave-one-out), full ranking.

About an hour a data set; one alone with its name: diginetica, beauty. It runs what `raysys
benchmark` runs, settings chosen by itself on validation, and needs the data that RAYSYS_DATA names.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.parts import write_rankings_result
from benchmarks.result import ROOT, Figure
from raysys.stages import benchmark_sequences, benchmark_sessions

PUBLISHED = {
    "diginetica_p20": "V-SkNN 51.2, SR-GNN 50.7, GCE-GNN 54.2, SGNN-HN 55.7 (published)",
    "diginetica_mrr20": "V-SkNN 18.2, SR-GNN 17.6, GCE-GNN 19.0, SGNN-HN 19.5 (published)",
    "beauty_hit10": "item-kNN .080; ICLRec .074 (published)",
    "beauty_ndcg10": "item-kNN .050; ICLRec .040 (published)",
}
AIMS = {
    "diginetica_p20": "at least 56",
    "diginetica_mrr20": "at least 20",
    "beauty_hit10": "at least .095",
    "beauty_ndcg10": "at least .058",
}
MEASURES = {
    "diginetica": {"P@20": "p20", "MRR@20": "mrr20"},
    "beauty": {"HIT@10": "hit10", "NDCG@10": "ndcg10"},
}
SCALE = {"diginetica": 100.0, "beauty": 1.0}  # the field tells the one in per cent


def data() -> Path:
    """The folder of the data sets."""
    return Path(os.environ.get("RAYSYS_DATA", ROOT.parent / "shared" / "data"))


def measured(name: str, minutes: float) -> dict[str, Any]:
    """The report of one data set."""
    if name == "beauty":
        return benchmark_sequences.run(data() / "sequences" / "beauty.txt.gz", minutes=minutes)
    folder = data() / "sessions"
    train, test = "diginetica_train_sessions.jsonl.gz", "diginetica_test.jsonl.gz"
    return benchmark_sessions.run(folder / train, folder / test, minutes=minutes)


def figures(name: str, report: dict[str, Any], note: str = "") -> list[Figure]:
    """Of the ensemble, of its gain over its best member, and of every member."""
    found = []
    unit = "%" if SCALE[name] == 100 else "share"

    def told(label: str, value: dict[str, float], aim: str = "", reference: str = "") -> None:
        low, high = value["low"] * SCALE[name], value["high"] * SCALE[name]
        figure = Figure(label, value["value"] * SCALE[name], unit, low, high, aim, reference)
        found.append(figure)

    counts, best = report["counts"], report["best_member"]
    judged = f"{counts['test_cases_judged']:,} of {counts['test_cases']:,} cases"
    chosen = f"{report['ensemble']['method']} of {len(report['members'])} members; {judged}"
    chosen += note and f"; {note}"
    for measure, short in MEASURES[name].items():
        label = f"{name}_{short}"
        reference = f"{PUBLISHED[label]}; {chosen}"
        told(label, report["ensemble"][measure], AIMS[label], reference)
    for i, (measure, short) in enumerate(MEASURES[name].items()):
        label = f"{name}_gain" if i == 0 else f"{name}_{short}_gain"
        aim = "interval above zero"
        told(label, report["gain"][measure], aim, f"{measure}, paired, over {best}, {judged}")
    for member, values in report["members"].items():
        for measure, short in MEASURES[name].items():
            told(f"{name}_{short}_{member}", values[measure], "", f"{measure} of this member alone")
    return found


def main() -> None:
    """Run what is asked for, or write a report that `raysys benchmark … --out` left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="diginetica, beauty; both if left out")
    parser.add_argument("--minutes", type=float, default=60, help="a data set")
    parser.add_argument("--report", type=Path, help="of a run of the same command before")
    parser.add_argument("--note", default="", help="of the circumstances, kept beside figures")
    told = parser.parse_args()
    if unknown := set(told.names) - set(MEASURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose among {', '.join(MEASURES)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in told.names or MEASURES:
        began = time.monotonic()
        if told.report is not None:
            report = json.loads(told.report.read_text(encoding="utf-8"))
            sys.argv[1:] = [name, "--minutes", f"{report['minutes']:g}"]  # what made it
        else:
            report = measured(name, told.minutes)
        seconds = report["seconds"] if told.report else time.monotonic() - began
        write_rankings_result(figures(name, report, told.note), seconds, name)


if __name__ == "__main__":
    main()

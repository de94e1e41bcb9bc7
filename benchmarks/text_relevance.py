"""Relevance of products to unseen queries: Home Depot's judged pairs, and Icecat's full retrieval.

8 minutes on one core with `--queries 3000 --members --vectors none`: a sample of Home Depot's
queries, and no transformer fine-tuned. All of its queries, with transformers, are judged by
`python -m benchmarks.judgements --minutes 60`, whose figures are `rankings.homedepot_…`.
With a GPU: `--data home_depot --folds 4 --epochs 3 --larger 2 --members cross_encoder
cross_encoder_right cross_encoder_lists bi_encoder` (not run yet: spelling put right before a query
is read, and lists in the place of pairs, may gain something).
`--vectors floor` measures the fusion of MiniLM and BM25 that Icecat's trees have to beat, without
giving them the vectors.

Outcomes of stages are kept where `--keep` says, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks import relevance_icecat
from benchmarks.kept import Kept
from benchmarks.relevance_home_depot import ENCODERS, USUAL, HomeDepot
from benchmarks.result import ROOT
from benchmarks.text_results import write_text_result

DATA = Path(os.environ.get("RAYSYS_DATA", ROOT.parent / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for outcomes of stages")
    parser.add_argument("--queries", type=int, help="of Home Depot, at most; all unless given")
    parser.add_argument("--workers", type=int, default=2, help="folds fitted at a time")
    parser.add_argument("--epochs", type=float, default=2.0, help="of the transformers")
    parser.add_argument("--taught", type=int, help="pairs a transformer learns from, at most")
    parser.add_argument("--members", nargs="*", default=list(USUAL), choices=list(ENCODERS))
    parser.add_argument("--folds", type=int, default=2, help="of a transformer: one fit each")
    parser.add_argument("--larger", type=int, default=1, help="batches, so many times: for GPUs")
    parser.add_argument("--data", nargs="*", default=["icecat", "home_depot"])
    parser.add_argument(
        "--vectors", choices=relevance_icecat.VECTORS, default="trees",
        help="of Icecat, by MiniLM: for trees and floor, for the floor alone, or none",
    )  # fmt: skip
    parser.add_argument("--no-vectors", action="store_const", dest="vectors", const="none")
    parser.add_argument("--dry", action="store_true", help="print figures, write nothing")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        kept = Kept(arguments.keep or Path(scratch))
        figures = []
        if "icecat" in arguments.data:
            figures += relevance_icecat.figures(DATA / "search", kept, vectors=arguments.vectors)
        if "home_depot" in arguments.data:
            home_depot = HomeDepot(
                DATA / "search" / "home_depot.csv.gz", kept, queries=arguments.queries,
                workers=arguments.workers, epochs=arguments.epochs, members=arguments.members,
                taught=arguments.taught, folds=arguments.folds, larger=arguments.larger,
            )  # fmt: skip
            figures += home_depot.figures()
    if arguments.dry:
        for figure in figures:
            print(f"{figure.name:40s} {figure.value:.4f} [{figure.low}, {figure.high}]")
        return
    part = arguments.data[0] if len(arguments.data) == 1 else ""
    write_text_result(figures, time.monotonic() - started + sum(kept.spared), part)


if __name__ == "__main__":
    main()

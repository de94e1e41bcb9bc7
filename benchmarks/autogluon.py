"""AutoGluon tabular (`best_quality`) on our features: Complete Journey, Home Depot, the next item.

An hour a data set with its default time limit; less with `--seconds`. AutoGluon lives in an
environment of its own, which the first run makes with pip.

It gets the very columns that our trees read, of the same rows, whole requests in one fold of its
bagging, as many cores as this process may use, and as many seconds as it is told. It fits a table,
so where there are candidates (Complete Journey, Diginetica, Beauty) it learns how likely one is
to be taken, and is ranked by that. Of the next item's test cases 5,000 are judged unless
`--requests` says otherwise: each has more than a hundred candidates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks._autogluon_next_item import next_item
from benchmarks._autogluon_table import FOLDS, Table, figure, told
from benchmarks.parts import write_rankings_result
from benchmarks.result import ROOT, Figure
from raysys.ensemble import Judgements, ndcg
from raysys.evaluation.intervals import Bootstrap
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.sampling import thinned
from raysys.registry import Registry
from raysys.storage import Workspace, read_manifest

DATA = Path(os.environ.get("RAYSYS_DATA", ROOT.parent / "shared" / "data"))
PACKAGES = "autogluon.tabular[lightgbm,xgboost,catboost,fastai]>=1.4,<2"
CHILD = Path(__file__).with_name("_autogluon_child.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(MAKERS), required=True)
    parser.add_argument(
        "--files", type=Path, nargs="+", default=[],
        help="instead of diginetica's (train, test) or beauty's (one), with --dry",
    )  # fmt: skip
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--environment", type=Path, default=ROOT / "runs" / "autogluon")
    parser.add_argument("--seconds", type=int, default=3600, help="of AutoGluon's fit")
    parser.add_argument("--requests", type=int, help="of each part, at most; all unless given")
    parser.add_argument("--candidates", type=int, default=40, help="irrelevant ones to learn from")
    parser.add_argument("--dry", action="store_true", help="print figures, write nothing")
    arguments = parser.parse_args()
    if arguments.files and not arguments.dry:
        parser.error("figures of other files are not the data set's: give --dry")
    started = time.monotonic()
    python = environment(arguments.environment)
    table, judge = MAKERS[arguments.data](arguments)
    said, facts = fitted(python, table, arguments.seconds)
    found = judge(said, facts)
    if arguments.dry:
        for figure in found:
            print(f"{figure.name:44s} {figure.value:.4f} [{figure.low}, {figure.high}]")
            print(f"    {figure.reference}")
        return
    write_rankings_result(found, time.monotonic() - started, arguments.data)


def environment(folder: Path) -> Path:
    """The Python of an environment that has AutoGluon; made if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
    probe = [str(python), "-c", "import autogluon.tabular"]
    if subprocess.run(probe, capture_output=True).returncode:
        print(f"installing {PACKAGES} into {folder}", file=sys.stderr)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", PACKAGES],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"AutoGluon cannot be installed:\n{done.stderr[-2000:]}")
    return python


def fitted(python: Path, table: Table, seconds: int) -> tuple[np.ndarray, dict]:
    """What AutoGluon says of the test rows, float32[n], and facts of its fit."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        table.train.write_parquet(home / "train.parquet")
        table.test.write_parquet(home / "test.parquet")
        told = {
            "problem": table.problem, "metric": table.metric, "seconds": seconds,
            "cores": cores, "preset": "best_quality",
        }  # fmt: skip
        (home / "task.json").write_text(json.dumps(told))
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run([str(python), "-P", str(CHILD), str(home)], check=True, env=inherited)
        facts = json.loads((home / "facts.json").read_text())
        said = pl.read_parquet(home / "said.parquet")["said"].to_numpy()
    return said.astype(np.float32), facts


# ── Complete Journey ─────────────────────────────────────────────────────────────────────────────


def complete_journey(arguments: argparse.Namespace):
    """Features of a finished demo: train and validation folds to learn, the report period."""
    workspace = Workspace(arguments.workspace)
    folds = read_manifest(workspace.features).figures["folds"]
    examples = Examples(workspace.features, (*folds["train"], folds["validation"]))
    train = _drawn(examples.batch(), arguments.requests)
    train = thinned(train, arguments.candidates, 0, "autogluon")
    report = _drawn(examples.with_folds(folds["report"]).batch(), arguments.requests)
    columns = _frame(train).with_columns(
        label=pl.Series((train.label > 0).astype(np.int8)),
        group=pl.Series((train.group % FOLDS).astype(np.int8)),
    )

    def judge(said: np.ndarray, facts: dict) -> list[Figure]:
        bundle = Registry(workspace.registry).load("champion")
        base = {name: model.score(report) for name, model in bundle.learners.items()}
        ours = bundle.ensemble.score(base, report.offsets, report).score
        judgements = Judgements.of(report)
        draws = Bootstrap(report.user)
        of = {
            name: ndcg(judgements, judgements.ranks(score), 10)
            for name, score in {**base, "ensemble": ours, "autogluon": said}.items()
        }
        about = f"{report.n_requests} requests of the last four weeks; {told(facts)}"
        return [
            figure("completejourney_ndcg10_autogluon", draws.mean(of["autogluon"]), about),
            figure(
                "completejourney_ndcg10_beside_autogluon", draws.mean(of["ensemble"]),
                "our ensemble on the same requests",
            ),
            figure(
                "completejourney_gain_over_autogluon",
                draws.difference(of["ensemble"], of["autogluon"]),
                "paired, our ensemble minus AutoGluon",
            ),
        ]  # fmt: skip

    return Table(columns, _frame(report), "binary", "log_loss"), judge


def _drawn(batch: Batch, most: int | None) -> Batch:
    """At most so many requests, evenly over time."""
    if most is None or batch.n_requests <= most:
        return batch
    return batch.take_requests(np.linspace(0, batch.n_requests - 1, most).round().astype(np.int64))


def _frame(batch: Batch) -> pl.DataFrame:
    return pl.DataFrame(batch.features, schema=list(batch.names))


# ── Home Depot ───────────────────────────────────────────────────────────────────────────────────


def home_depot(arguments: argparse.Namespace):
    """Features of pairs, queries unseen in test; our ensemble within the same time beside it."""
    from raysys.learners.relevance_blend import folds_by_query
    from raysys.learners.relevance_trees import Remembered
    from raysys.stages import benchmark_relevance as ours
    from raysys.stages import relevance_judging as judging
    from raysys.stages import relevance_members as members_of
    from raysys.stages.benchmark_pairs import read_pairs

    judged = read_pairs(
        DATA / "search" / "home_depot.csv.gz", "search_term", ["product_title"], "relevance",
        queries=arguments.requests,
    )  # fmt: skip
    ground = judging.Ground.of(judged, 0)
    pairs = ground.pairs
    began = time.monotonic()
    members, _ = members_of.fit_members(ground, members_of.Budget(arguments.seconds))
    joined = ours.join_members(ground, members, 0)
    took = time.monotonic() - began
    told = members["relevance_trees"].settings
    encode = Remembered(told["vectors"], told["max_tokens"]) if told["vectors"] else None
    columns, features = members_of.columns_of(ground, encode)
    names = list(features.names)
    learned = ("train", "validation")
    # the queries of validation are one fold more
    group = [folds_by_query(pairs["train"], FOLDS, 0), np.full(len(pairs["validation"]), FOLDS)]
    frame = pl.DataFrame(
        np.concatenate([columns[name] for name in learned]), schema=names
    ).with_columns(
        label=pl.Series(np.concatenate([pairs[name].grade for name in learned])),
        group=pl.Series(np.concatenate(group).astype(np.int8)),
    )

    def judge(said: np.ndarray, facts: dict) -> list[Figure]:
        low = float(pairs["train"].grade.min())
        test, held = (
            judging.Judge(pairs["test"], 5, low),
            judging.Judge(pairs["validation"], 5, low),
        )
        draws = Bootstrap(np.unique(pairs["test"].query))
        mine = test.ndcg(joined[judging.best_on_validation(joined, held)][0]["test"])
        theirs = test.ndcg(said)
        n = int((~np.isnan(mine)).sum())
        about = f"{n} unseen queries, {len(frame)} pairs; {told(facts)}"
        return [
            figure("homedepot_ndcg10_autogluon", draws.mean(theirs), about),
            figure("homedepot_rmse_autogluon", test.rmse(said, draws), about),
            figure(
                "homedepot_ndcg10_beside_autogluon", draws.mean(mine),
                f"our ensemble of {', '.join(members)} in {took:.0f} s",
            ),
            figure(
                "homedepot_rmse_beside_autogluon",
                test.rmse(joined["weighted_grades"][0]["test"], draws), "our ensemble",
            ),
            figure(
                "homedepot_gain_over_autogluon", draws.difference(mine, theirs),
                "NDCG@10, paired, our ensemble minus AutoGluon",
            ),
        ]  # fmt: skip

    test = pl.DataFrame(columns["test"], schema=names)
    return Table(frame, test, "regression", "root_mean_squared_error"), judge


MAKERS = {
    "complete_journey": complete_journey,
    "home_depot": home_depot,
    "diginetica": next_item,
    "beauty": next_item,
}


if __name__ == "__main__":
    main()

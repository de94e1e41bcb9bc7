"""Judged queries for scripts that fit relevance with and without something: tables, fits, gains."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.home_depot import read
from benchmarks.result import Figure
from benchmarks.text_data import SPLITS, data_folder
from raysys import schema
from raysys.datasets.splits import components
from raysys.evaluation.text_judge import TextJudge, TextVerdict
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext


def home_depot(queries: int, seed: int) -> dict[str, pl.DataFrame]:
    """`schema.LABELLED_PAIRS` of so many queries, by split: no query is in two."""
    path = data_folder() / "search" / "home_depot.csv.gz"
    pairs = pl.DataFrame(read(path, queries, seed))
    return {name: pairs.filter(pl.col("split") == name) for name in SPLITS}


def table(pairs: pl.DataFrame) -> pa.Table:
    """Pairs as learners take them."""
    return pairs.select(schema.LABELLED_PAIRS.names).to_arrow().cast(schema.LABELLED_PAIRS)


def judge_of(truth: pl.DataFrame, least_grade: float = 1.0) -> TextJudge:
    """Of NDCG@10, drawn by query; a gain is a grade less the least."""
    return TextJudge(
        "relevance", table(truth), components(truth, "relevance"), least_grade=least_grade, seed=0
    )


def said(
    learner: str,
    settings: dict[str, Any],
    parts: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame],
    seed: int,
) -> pa.Table:
    """Grades of the last of (training, validation, test) pairs, by a model of the first two."""
    train, validation, test = map(table, parts)
    with tempfile.TemporaryDirectory() as scratch:
        made = make_text_learner(learner, settings, task="relevance")
        model = made.fit(train, validation, TextContext(Path(scratch), seed))
    return model.predict(test.select(["query", "text"]))


def gain_figures(
    prefix: str, judge: TextJudge, runs: list[tuple[pa.Table, pa.Table]], what: tuple[str, str]
) -> list[Figure]:
    """NDCG@10 with and without, and the paired gain, each the mean over seeds.

    Args:
        prefix: of the names.
        judge: of the pairs that were graded.
        runs: grades with and without, a seed each; their mean is judged, query by query.
        what: how one and the other were made.
    """
    verdicts = []
    for side, name in ((0, "with"), (1, "without")):
        found = [judge.verdict(run[side]) for run in runs]
        basis = np.mean([each.basis for each in found], axis=0)
        verdicts.append(TextVerdict(found[0].figures, basis))
        print(f"  {prefix} {name}: {np.nanmean(basis):.4f}", flush=True)
    note = f"{len(runs)} seeds, drawn by query"
    rows = [
        ("ndcg10", judge.bootstrap.mean(verdicts[0].basis), what[0], ""),
        ("ndcg10_without", judge.bootstrap.mean(verdicts[1].basis), what[1], ""),
        ("gain", judge.gain(*verdicts), f"paired, {note}", "> 0"),
    ]
    return [
        Figure(f"{prefix}_{name}", each.value, "NDCG@10", each.low, each.high, aim, reference)
        for name, each, reference, aim in rows
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--steps` and `--dry`, by which a script is tried out."""
    parser.add_argument("--steps", type=int, help="of every training, at most: to try it out")
    parser.add_argument("--dry", action="store_true", help="print figures, write nothing")


def brief(settings: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """Settings whose training ends after so many steps; None: as they are."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    training = {"checkpoint_every": None, **settings.get("training", {})}
    if steps is not None:
        training["max_steps"] = min(steps, training.get("max_steps", steps))
    return {**settings, "training": training}


def shown(figures: list[Figure]) -> None:
    """Print figures that are not written."""
    for each in figures:
        print(f"{each.name:44s} {each.value:.4f} [{each.low}, {each.high}] {each.reference}")

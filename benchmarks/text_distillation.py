"""What a cross-encoder teaches two towers: the same towers fitted with and without a teacher.

Ten minutes on one core, most of it the teacher.
Needs the data that RAYSYS_DATA names.

Home Depot's judged queries, no query in two splits. The teacher (`cross_encoder`) is fitted on the
training pairs; two `bi_encoder`, alike in everything else, learn from the judgements alone, and
from the differences of the teacher's scores as well (margin-MSE). Nothing is chosen on test pairs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Figure
from benchmarks.text_queries import (
    add_options,
    brief,
    gain_figures,
    home_depot,
    judge_of,
    said,
    shown,
    table,
)
from benchmarks.text_results import write_text_result
from raysys.learners.text import make_text_learner, save_text_model
from raysys.learners.text_protocol import TextContext

EPOCHS = 2
TEACHER = {
    "training": {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 1e-4,
                 "head_learning_rate": 1e-3, "warm_up": 0.1},
}  # fmt: skip
STUDENT = {
    "training": {"epochs": EPOCHS, "batch_size": 8, "learning_rate": 1e-4,
                 "head_learning_rate": 1e-2, "warm_up": 0.1},
}  # fmt: skip


def measure(asked: argparse.Namespace) -> list[Figure]:
    """NDCG@10 of teacher and students on test queries, and the paired gain of the lesson."""
    splits = home_depot(asked.queries, 0)
    parts = splits["train"], splits["validation"], splits["test"]
    judge = judge_of(splits["test"])
    runs, taught = [], []
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            learner = make_text_learner(
                "cross_encoder", brief(TEACHER, asked.steps), task="relevance"
            )
            context = TextContext(Path(scratch), seed)
            teacher = learner.fit(*map(table, parts[:2]), context)
            folder = Path(scratch) / "teacher"
            save_text_model("cross_encoder", teacher, folder)
            graded = teacher.predict(table(splits["test"]).select(["query", "text"]))
            taught.append(judge.verdict(graded).basis)
            print(f"  teacher, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
            del teacher
            found: list[Any] = []
            for lesson in ({"teacher": str(folder)}, {}):
                began = time.monotonic()
                settings = {**brief(STUDENT, asked.steps), **lesson}
                found.append(said("bi_encoder", settings, parts, seed))
                print(f"  {'taught' if lesson else 'alone'}: {time.monotonic() - began:.0f} s",
                      flush=True)  # fmt: skip
            runs.append((found[0], found[1]))
    pairs = f"{splits['train'].height:,} judged pairs"
    mean = judge.bootstrap.mean(np.mean(taught, axis=0))
    note = f"the cross-encoder itself, {pairs}, {EPOCHS} epochs"
    return [
        *gain_figures(
            "distillation",
            judge,
            runs,
            (f"two towers and its scores of {pairs}", "two towers, the same pairs and steps"),
        ),
        Figure("distillation_teacher_ndcg10", mean.value, "NDCG@10", mean.low, mean.high, "", note),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1000, help="of Home Depot, in all")
    parser.add_argument("--seeds", type=int, default=1)
    add_options(parser)
    asked = parser.parse_args()
    began = time.monotonic()
    figures = measure(asked)
    if asked.dry:
        shown(figures)
    else:
        write_text_result(figures, time.monotonic() - began)


if __name__ == "__main__":
    main()

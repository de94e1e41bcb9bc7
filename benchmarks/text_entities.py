"""Attributes in product titles: spans found on titles not fitted on, by three taggers.

About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.entity_data import SETS, Pairs, folds, read
from benchmarks.result import Figure
from benchmarks.text_queries import shown
from benchmarks.text_results import write_text_result
from raysys.evaluation.span_metrics import Scores, span_gain, span_report
from raysys.learners.entity_tagger import EntityTagger, WordTagger
from raysys.learners.gazetteer_tagger import GazetteerTagger
from raysys.learners.text_protocol import SpanModel, TextContext

LEARNERS = {each.name: each for each in (GazetteerTagger, WordTagger, EntityTagger)}
BASELINE, BEST = "gazetteer_tagger", "entity_tagger"
NAMES = {
    "oa_mine": {"brand": "Brand", "model": "Model name"},
    "ae_110k": {"brand": "Brand Name", "model": "Model Number"},
}
ASKED = "the attributes annotated for a title are asked for; of others nothing is known"

Spans = list[set[tuple[int, int, str]]]


@dataclass
class Outcome:
    """One learner on the titles of one fold, or of several."""

    truth: Spans = field(default_factory=list)
    found: Spans = field(default_factory=list)
    true_pairs: list[Pairs] = field(default_factory=list)
    found_pairs: list[Pairs] = field(default_factory=list)
    asked_pairs: list[Pairs] = field(default_factory=list)
    trained: int = 0
    fit_s: float = 0.0
    predict_s: float = 0.0
    validation_f1: list[float] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.truth += other.truth
        self.found += other.found
        self.true_pairs += other.true_pairs
        self.found_pairs += other.found_pairs
        self.asked_pairs += other.asked_pairs
        self.trained += other.trained
        self.fit_s += other.fit_s
        self.predict_s += other.predict_s
        self.validation_f1 += other.validation_f1


def spans_in(rows: list[list[dict]]) -> Spans:
    return [{(s["start"], s["end"], s["label"]) for s in row} for row in rows]


def pairs_in(rows: list[list[dict]]) -> list[Pairs]:
    return [{(s["text"], s["label"]) for s in row} for row in rows]


def asked_for(model: SpanModel, titles: pa.Table, asked: list[set[str]]) -> list[Pairs]:
    """What is found where only the labels annotated for a title are asked for."""
    of: dict[frozenset[str], list[int]] = {}
    for row, labels in enumerate(asked):
        of.setdefault(frozenset(labels & set(model.labels)), []).append(row)
    found: list[Pairs] = [set() for _ in asked]
    for labels, rows in of.items():
        if labels:
            said = model.predict(titles.take(rows), labels)["spans"].to_pylist()
            for row, pairs in zip(rows, pairs_in(said), strict=True):
                found[row] = pairs
    return found


def judge(job: tuple[str, str, int, int, dict[str, Any]]) -> Outcome:
    """Fit on four folds but for an eighth, which chooses thresholds; find spans in the fifth."""
    import torch

    torch.set_num_threads(1)
    name, data, fold, n, training = job
    titles = read(data)
    rows = list(folds(titles.table, n, seed=0))[fold]
    train, validation, test = (titles.table.take(each) for each in rows)
    settings = LEARNERS[name].settings_model()
    if name == BEST and training:
        changed = settings.training.model_copy(update=training)
        settings = settings.model_copy(update={"training": changed})
    learner = LEARNERS[name](settings)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        model = learner.fit(train, validation, TextContext(Path(scratch), seed=fold))
        fitted = time.monotonic()
        said = model.predict(test)["spans"].to_pylist()
        done = time.monotonic()
    checked = model.predict(validation)["spans"].to_pylist()
    truth = spans_in(validation["spans"].to_pylist())
    return Outcome(
        truth=spans_in(test["spans"].to_pylist()),
        found=spans_in(said),
        true_pairs=[titles.pairs[row] for row in rows[2]],
        asked_pairs=asked_for(model, test, [titles.asked[row] for row in rows[2]]),
        found_pairs=pairs_in(said),
        trained=len(train),
        fit_s=fitted - began,
        predict_s=done - fitted,
        validation_f1=[span_report(truth, spans_in(checked), resamples=0).micro.f1.value],
    )


def figures(data: str, outcomes: dict[str, Outcome], chosen: str) -> Iterator[Figure]:
    n = len(outcomes[BASELINE].truth)
    how = f"5-fold cross-validation, {n} titles, exact spans"

    def f1(name: str, scores: Scores, aim: str = "", reference: str = how) -> Figure:
        value = scores.f1
        return Figure(name, value.value, "micro F1", value.low, value.high, aim, reference)

    reports = {name: span_report(each.truth, each.found) for name, each in outcomes.items()}
    yield f1(f"{data}_f1", reports[chosen].micro, "≥ 0.85", f"{how}, {chosen}")
    yield f1(f"{data}_f1_baseline", reports[BASELINE].micro, reference=f"{how}, {BASELINE}")
    for name in (each for each in outcomes if each not in (chosen, BASELINE)):
        yield f1(f"{data}_f1_{name}", reports[name].micro)
    gain = span_gain(outcomes[chosen].truth, outcomes[chosen].found, outcomes[BASELINE].found)
    yield Figure(f"{data}_f1_gain", gain.value, "micro F1", gain.low, gain.high, "> 0",
                 f"{chosen} over {BASELINE}, paired")  # fmt: skip
    labels = NAMES[data]
    both = span_report(outcomes[chosen].truth, outcomes[chosen].found, labels=labels.values())
    yield f1(f"{data}_brand_model_f1", both.micro, "≥ 0.85")
    simple = span_report(outcomes[BASELINE].truth, outcomes[BASELINE].found, labels=labels.values())
    yield f1(f"{data}_brand_model_f1_baseline", simple.micro)
    for name, label in labels.items():
        yield f1(f"{data}_{name}_f1", both.by_label[label], "≥ 0.85", f"{how}, {label!r}")
        yield f1(f"{data}_{name}_f1_baseline", simple.by_label[label], reference=f"{label!r}")
    for name, outcome in ((f"{data}_value_f1", outcomes[chosen]),
                          (f"{data}_value_f1_baseline", outcomes[BASELINE])):  # fmt: skip
        values = span_report(outcome.true_pairs, outcome.found_pairs)
        yield f1(name, values.micro, reference="(value, attribute) pairs, wherever they stand")
    for name, outcome in ((f"{data}_asked_f1", outcomes[chosen]),
                          (f"{data}_asked_f1_baseline", outcomes[BASELINE])):  # fmt: skip
        report = span_report(outcome.true_pairs, outcome.asked_pairs)
        yield f1(name, report.micro, reference=ASKED)
    macro = reports[chosen].macro.f1
    yield Figure(f"{data}_macro_f1", macro.value, "macro F1", macro.low, macro.high)
    for name, outcome in outcomes.items():
        yield Figure(f"{data}_{name}_fit_s", outcome.fit_s, "s, all folds, one core")
        rate = outcome.trained / outcome.fit_s
        yield Figure(f"{data}_{name}_fit_titles_per_s", rate, "titles/s, all epochs, one core")
        rate = n / outcome.predict_s
        yield Figure(f"{data}_{name}_titles_per_s", rate, "titles/s, one core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=float, help=f"of {BEST}, instead of its default")
    parser.add_argument("--layers", type=int, help=f"of {BEST} that learn; -1: all")
    parser.add_argument("--dry", action="store_true", help="print figures, write nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    n = arguments.folds
    asked = {"epochs": arguments.epochs, "trainable_layers": arguments.layers}
    training = {name: value for name, value in asked.items() if value is not None}
    jobs = [(name, data, fold, n, training) for name in reversed(LEARNERS) for data in SETS
            for fold in range(n)]  # fmt: skip
    every: dict[str, dict[str, Outcome]] = {data: {} for data in SETS}
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        for (name, data, fold, _, _), one in zip(jobs, pool.map(judge, jobs), strict=True):
            every[data].setdefault(name, Outcome()).add(one)
            f1 = one.validation_f1[0]
            print(
                f"{data} fold {fold} {name}: {f1:.3f} on validation, {one.fit_s:.0f} s", flush=True
            )
    rows: list[Figure] = []
    for data, outcomes in every.items():
        means = {name: float(np.mean(each.validation_f1)) for name, each in outcomes.items()}
        chosen = max(means, key=lambda name: means[name])
        if chosen != BEST:
            print(f"{data}: {chosen} wins on validation ({means[chosen]:.3f}; {BEST} "
                  f"{means[BEST]:.3f}) and is used")  # fmt: skip
        rows.extend(figures(data, outcomes, chosen))
    if arguments.dry:
        shown(rows)
        return
    write_text_result(rows, time.monotonic() - started)


if __name__ == "__main__":
    main()

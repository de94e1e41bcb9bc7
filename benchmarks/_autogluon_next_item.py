"""The next item for AutoGluon: our members propose, it ranks what they propose.

It reads what our own trees over members read (each member's share, its lead and rank, and plain
facts of the candidate), is fitted on the validation cases that our ensemble is fitted on, with
members that did not see them, and judged on the same test cases. A candidate that no member
proposed can be ranked by nobody.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import sequences
from benchmarks._autogluon_table import FOLDS, Table, figure, told
from benchmarks.result import Figure
from raysys.ensemble.next_item import PLAIN, Candidates, target_ranks
from raysys.evaluation.intervals import Bootstrap
from raysys.stages import benchmark_sequences, benchmark_sessions
from raysys.stages.benchmark_next_item import Trial
from raysys.stages.next_item_problem import Cases, Int64, Problem

JUDGED = 5000


def problem_of(name: str, files: list[Path]) -> Problem:
    """Diginetica's or Beauty's, or that of other files of the kind."""
    if name == "beauty":
        path = files[0] if files else sequences.data() / "sequences" / "beauty.txt.gz"
        return benchmark_sequences.read(path)[0]
    folder = sequences.data() / "sessions"
    train, test = files or [
        folder / "diginetica_train_sessions.jsonl.gz",
        folder / "diginetica_test.jsonl.gz",
    ]
    return benchmark_sessions.read(train, test)[0]


def table_of(candidates: Candidates, members: list[str]) -> pl.DataFrame:
    """What trees over members read, by name."""
    names = [f"{kind}_{name}" for kind in ("share", "lead", "rank") for name in members]
    return pl.DataFrame(candidates.inputs, schema=[*names, *PLAIN])


def learned(candidates: Candidates, group: Int64, irrelevant: int, seed: int) -> Int64:
    """Rows to learn from: of cases whose item was proposed, it and so many others at random."""
    owner = np.repeat(np.arange(len(group)), np.diff(candidates.offsets))
    hit = np.add.reduceat(candidates.label, candidates.offsets[:-1]) > 0
    draw = np.random.default_rng(seed).random(len(owner))
    order = np.lexsort((draw, -candidates.label, owner))  # the right one first
    place = np.empty(len(owner), dtype=np.int64)
    place[order] = np.arange(len(owner)) - candidates.offsets[owner[order]]
    return np.flatnonzero(hit[owner] & (place <= irrelevant))


def next_item(arguments: argparse.Namespace):
    """Candidates of validation to learn from, those of test; our ensemble within the same time."""
    name = arguments.data
    problem = problem_of(name, arguments.files)
    most = arguments.requests or JUDGED
    held: list[tuple[Candidates, Int64]] = []
    asked: list[tuple[Candidates, Int64, Int64]] = []

    def keep(candidates: Candidates, cases: Cases, ranks: Int64 | None) -> None:
        if ranks is None:
            held.append((candidates, cases.group))
        elif (room := most - sum(len(group) for _, group, _ in asked)) > 0:
            few = np.arange(min(room, len(cases)))  # cases come up in random order
            asked.append((candidates.take(few), cases.group[few], ranks[few]))

    report = Trial(problem, arguments.seconds / 60, keep=keep).run()
    members = list(report["members"])
    (validation, groups), test = held[0], joined([each[0] for each in asked])
    rows = learned(validation, groups, arguments.candidates, 0)
    owner = np.repeat(groups, np.diff(validation.offsets))[rows]
    train = table_of(validation, members)[rows].with_columns(
        label=pl.Series(validation.label[rows].astype(np.int8)),
        group=pl.Series((owner % FOLDS).astype(np.int8)),
    )
    group = np.unique(np.concatenate([each[1] for each in asked]), return_inverse=True)[1]
    ours = np.concatenate([each[2] for each in asked])

    def judge(said: np.ndarray, facts: dict) -> list[Figure]:
        theirs = target_ranks(said, test)
        draws = Bootstrap(group)
        scale = sequences.SCALE[name]
        unit = "%" if scale == 100 else "share"
        about = f"{len(group)} of {len(problem.test)} test cases, drawn at random"
        found = []
        for measure in problem.measures:
            short = sequences.MEASURES[name][measure.name]
            mine, other = measure.of(ours), measure.of(theirs)
            found += [
                figure(
                    f"{name}_{short}_autogluon", draws.mean(other),
                    f"candidates and scores of our members; {about}; {told(facts)}", scale, unit,
                ),
                figure(
                    f"{name}_{short}_beside_autogluon", draws.mean(mine),
                    f"our ensemble on the same cases, all of it in {report['seconds']:.0f} s",
                    scale, unit,
                ),
                figure(
                    f"{name}_{short}_gain_over_autogluon", draws.difference(mine, other),
                    f"{measure.name}, paired, our ensemble minus AutoGluon", scale, unit,
                ),
            ]  # fmt: skip
        return found

    return Table(train, table_of(test, members), "binary", "log_loss"), judge


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of all parts, one after the other; at least one part, of the same members."""
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    return Candidates(
        np.concatenate([part.item for part in parts]),
        np.concatenate([[0], *(p.offsets[1:] + end for p, end in zip(parts, ends, strict=False))]),
        np.concatenate([part.shares for part in parts], axis=1),
        np.concatenate([part.ranks for part in parts], axis=1),
        np.concatenate([part.plain for part in parts]),
        np.concatenate([part.label for part in parts]),
    )

"""`raysys benchmark sessions`: the next click in sessions, ranked among all items.

The field's protocol (Hidasi et al., ICLR 2016; Wu et al., AAAI 2019): every test case is a session
so far and the click that followed; P@20 says how often it is among the first 20 of all items,
MRR@20 how high. Training sessions stand in the order of time, and the last of them are validation.
Of test sessions every prefix is a case.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysys.datasets.sequence_files import NOTHING, read_session_file, read_test_file
from raysys.datasets.sequence_lists import Lists, last_days
from raysys.datasets.sequence_names import Columns
from raysys.datasets.sequence_tables import Forced
from raysys.datasets.sequences import Case
from raysys.errors import UserError
from raysys.learners.sequence_protocol import ItemFacts, Sequences
from raysys.stages.benchmark_next_item import VALIDATION_CASES, Trial
from raysys.stages.next_item_problem import (
    LONGEST,
    Cases,
    Measure,
    Problem,
    hits,
    reciprocal,
    refuse_one_item,
)

log = logging.getLogger("raysys")

PLACES = 20
VALIDATION_SHARE = 0.05
UNKNOWN_REFUSED, UNKNOWN_WARNED = 0.99, 0.5
"""Shares of test labels unknown to training above which the run is refused, or a warning given."""
MOST_CLICKS = 100_000_000
"""In the prefixes of all test cases, 400 MB of them; of more cases some are drawn."""


def run(
    train: Path,
    test: Path | None = None,
    *,
    minutes: float,
    seed: int = 0,
    columns: Columns = NOTHING,
    form: Forced = "auto",
    test_days: float = 1,
) -> dict[str, Any]:
    """The report of one run.

    Args:
        train: sessions in the order of time, or events; see docs/benchmark.md for formats.
        test: likewise, or cases; None: the sessions of `train` that end in its last days.
        minutes: that all of it may take.
        seed: of everything random.
        columns: that are named; others are told by names or values.
        form: whether a row is an event, or a line a list.
        test_days: how many the last days are.

    Raises:
        UserError: a file that cannot be read, a malformed line, or too little to learn from.
    """
    began = time.monotonic()
    problem, read_as = read(train, test, seed=seed, columns=columns, form=form, test_days=test_days)
    report = Trial(problem, minutes, seed, began).run()
    files = {"train": str(train), "test": None if test is None else str(test)}
    return {"benchmark": "sessions", **files, "read_as": read_as, **report}


def read(
    train: Path,
    test: Path | None = None,
    *,
    seed: int = 0,
    columns: Columns = NOTHING,
    form: Forced = "auto",
    test_days: float = 1,
) -> tuple[Problem, dict[str, str]]:
    """Files, divided, and what each was taken for.

    Raises:
        UserError: see `run`.
    """
    sessions = read_session_file(train, columns, form)
    counts = {f"train_{name}": count for name, count in sessions.counts.items()}
    read_as = {"train": sessions.read_as}
    if test is None:
        if sessions.ends is None:
            raise UserError(
                "without a test file the last days of training are the test, but the file has no "
                "times",
                where=str(train),
                mend="name a test file behind it, or the column of the time with --time-col",
            )
        cases: Lists | list[Case]
        sessions, cases = last_days(sessions, sessions.ends, test_days)
        last = "last day" if test_days == 1 else f"last {test_days:g} days"
        read_as["test"] = f"sessions of the training file that end in its {last}"
    else:
        cases, read_as["test"] = read_test_file(test, columns, form)
        if isinstance(cases, Lists):
            counts |= {f"test_{name}": count for name, count in cases.counts.items()}
            counts |= _overlap(sessions, cases)
    problem = divided(sessions, cases, seed=seed, where=str(train))
    _refuse_unknown(problem, train, test or train)
    problem.counts.update(counts)
    return problem, read_as


def _refuse_unknown(problem: Problem, train: Path, test: Path) -> None:
    """Before time is spent: see that training knows the items that are to be found.

    Raises:
        UserError: it knows hardly any.
    """
    targets = problem.test.targets
    unknown = int((targets < 0).sum())
    said = f"{unknown:,} of {len(targets):,} items that are to be found never come up in training"
    if unknown > UNKNOWN_REFUSED * len(targets):
        raise UserError(
            said,
            where=str(test),
            mend=f"write items as {train} does, or see that both are of the same shop and that "
            "--item-col names the same column of both",
        )
    if unknown > UNKNOWN_WARNED * len(targets):
        log.warning("%s: %s", test, said)


def _overlap(sessions: Lists, cases: Lists) -> dict[str, int]:
    """Training sessions that end when test sessions do: they may tell what is to be found."""
    if sessions.ends is None or cases.ends is None:
        return {}
    late = int((sessions.ends > cases.ends.min()).sum())
    if late:
        log.warning("%d training sessions end later than the first test session", late)
    return {"train_sessions_after_test_begins": late}


@dataclass(frozen=True)
class Asked:
    """Test cases in training's numbers, and clicks of their prefixes that have none."""

    cases: Cases
    unknown: int
    counts: dict[str, int]


def divided(
    sessions: Lists | Sequence[list[str]],
    cases: Lists | list[Case],
    *,
    seed: int = 0,
    where: str = "",
) -> Problem:
    """Training sessions and validation, the last of them; test cases in training's numbers.

    Args:
        sessions: in the order of time.
        cases: or sessions, of which every prefix is a case.
        seed: of what is drawn.
        where: they are from, for errors.

    Raises:
        UserError: fewer than ten sessions have two items, there is but one item, or no test case.
    """
    known = sessions if isinstance(sessions, Lists) else Lists.of(sessions)
    ended = np.arange(len(known), dtype=np.float64)
    whole = Sequences(known.items, known.offsets, ended)
    useful = np.flatnonzero(whole.sizes > 1)
    if len(useful) < 10:
        raise UserError(
            f"{len(useful)} sessions of two items and more are too few to learn from and validate",
            where=where,
            mend="give at least ten",
        )
    refuse_one_item(len(known.names), where)
    # the last sessions that hold a twentieth of all prefixes
    prefixes = np.cumsum(np.maximum(whole.sizes - 1, 0))
    first = int(np.searchsorted(prefixes, prefixes[-1] * (1 - VALIDATION_SHARE), side="right"))
    first = min(max(first, 1), int(useful[-1]))
    late = whole.take(np.arange(first, len(whole)))
    sizes = np.maximum(late.sizes - 1, 0)
    # all prefixes of a session of thousands of clicks are millions of clicks
    rng = np.random.default_rng(seed)
    # the ensemble joins half of them: many that choose settings are others
    some = min(int(sizes.sum()), 2 * VALIDATION_CASES)
    drawn = np.sort(rng.choice(int(sizes.sum()), some, replace=False))
    asked, targets = late.prefixes(drawn, LONGEST)
    group = np.unique(np.repeat(np.arange(len(late)), sizes)[drawn], return_inverse=True)[1]
    numbers = {name: number for number, name in enumerate(known.names)}
    if isinstance(cases, Lists):
        test = asked_of_sessions(cases, numbers, seed, where)
    else:
        test = asked_of_cases(cases, numbers)
    return Problem(
        fit=whole.take(np.arange(first)),
        whole=whole,
        validation=Cases(asked, targets, group),
        test=test.cases,
        n_items=len(known.names),
        facts=ItemFacts(),
        k=PLACES,
        measures=(
            Measure(f"P@{PLACES}", hits(PLACES)),
            Measure(f"MRR@{PLACES}", reciprocal(PLACES)),
        ),
        counts={
            "train_sessions": len(known),
            "train_clicks": len(whole.items),
            "items": len(known.names),
            "validation_cases": int(sizes.sum()),
            "test_cases": len(test.cases),
            "test_clicks_unknown": test.unknown,
            "test_labels_unknown": int((test.cases.targets < 0).sum()),
            **test.counts,
        },
    )


def asked_of_cases(cases: list[Case], numbers: dict[str, int]) -> Asked:
    """Cases as a file has them, in training's numbers."""
    known = [[numbers[item] for item in case.session if item in numbers] for case in cases]
    labels = np.asarray([numbers.get(case.label, -1) for case in cases], dtype=np.int32)
    unknown = sum(len(c.session) for c in cases) - sum(map(len, known))
    prefixes = Sequences.of(known).tails(LONGEST)
    return Asked(Cases(prefixes, labels, same_session(cases)), unknown, {})


def asked_of_sessions(
    sessions: Lists, numbers: dict[str, int], seed: int = 0, where: str = ""
) -> Asked:
    """Every prefix of sessions and what followed, in training's numbers.

    Args:
        sessions: those of one click ask nothing.
        numbers: of the items that training knows.
        seed: of which cases are drawn where there are too many to hold.
        where: for the error.

    Raises:
        UserError: no session has two clicks.
    """
    sizes = np.maximum(sessions.sizes - 1, 0)
    n = int(sizes.sum())
    if not n:
        raise UserError(
            "no test session has two clicks, so there is nothing to ask",
            where=where,
            mend="give a test file with longer sessions, or more days with --test-days",
        )
    told = np.asarray([numbers.get(name, -1) for name in sessions.names], dtype=np.int32)
    items = told[sessions.items]
    before = np.concatenate([[0], np.cumsum(items >= 0)])  # known clicks before each place
    kept = Sequences(items[items >= 0], before[sessions.offsets])
    owner = np.repeat(np.arange(len(sessions)), sizes)
    ends = np.cumsum(sizes)
    place = sessions.offsets[owner] + 1 + np.arange(n) - (ends - sizes)[owner]
    begin, stop = kept.offsets[owner], before[place]
    unknown = int((place - sessions.offsets[owner] - (stop - begin)).sum())
    start = np.maximum(begin, stop - LONGEST)
    counts = {"test_sessions": len(sessions), "test_sessions_of_one_click": int((sizes == 0).sum())}
    clicks = int((stop - start).sum())
    drawn = np.arange(n)
    if clicks > MOST_CLICKS:
        some = max(1, int(n * MOST_CLICKS / clicks))
        drawn = np.sort(np.random.default_rng(seed).choice(n, some, replace=False))
        counts["test_cases_in_file"] = n
    prefixes = kept.cut(owner[drawn], start[drawn], stop[drawn])
    group = np.unique(owner[drawn], return_inverse=True)[1]
    return Asked(Cases(prefixes, items[place[drawn]], group), unknown, counts)


def same_session(cases: list[Case]) -> np.ndarray:
    """Cases that are one session's prefixes, side by side in either order: int64[r], 0 ….

    They share their fate, so the bootstrap draws them together. Files do not say which they are;
    a case whose session and label make the next one's session, or the reverse, tells.
    """
    group = np.zeros(len(cases), dtype=np.int64)
    for i in range(1, len(cases)):
        before, here = cases[i - 1], cases[i]
        shorter = [*here.session, here.label] == before.session
        longer = [*before.session, before.label] == here.session
        group[i] = group[i - 1] + (not (shorter or longer))
    return group

"""`raysys benchmark sessions`: the next click in sessions, ranked among all items.

The field's protocol (Hidasi et al., ICLR 2016; Wu et al., AAAI 2019): every test case is a session
so far and the click that followed; P@20 says how often it is among the first 20 of all items,
MRR@20 how high. Training sessions stand in the order of time, and the last of them are validation.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from raysys.datasets.sequences import Case, numbered, read_cases, read_sessions
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

PLACES = 20
VALIDATION_SHARE = 0.05


def run(train: Path, test: Path, *, minutes: float, seed: int = 0) -> dict[str, Any]:
    """The report of one run.

    Args:
        train: JSON lines, a session each, in the order of time.
        test: JSON lines, a session so far and its label each.
        minutes: that all of it may take.
        seed: of everything random.

    Raises:
        UserError: a file that cannot be read, a malformed line, or too little to learn from.
    """
    began = time.monotonic()
    problem = divided(read_sessions(train), read_cases(test), seed=seed, where=str(train))
    report = Trial(problem, minutes, seed, began).run()
    return {"benchmark": "sessions", "train": str(train), "test": str(test), **report}


def divided(
    sessions: list[list[str]], cases: list[Case], *, seed: int = 0, where: str = ""
) -> Problem:
    """Training sessions and validation, the last of them; test cases in training's numbers.

    Raises:
        UserError: fewer than ten sessions have two items, or there is but one item.
    """
    numbers = numbered(sessions)
    whole = Sequences.of([[numbers[i] for i in session] for session in sessions], ordered=True)
    useful = np.flatnonzero(whole.sizes > 1)
    if len(useful) < 10:
        raise UserError(
            f"{len(useful)} sessions of two items and more are too few to learn from and validate",
            where=where,
            mend="give at least ten",
        )
    refuse_one_item(len(numbers), where)
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
    known = [[numbers[item] for item in case.session if item in numbers] for case in cases]
    labels = np.asarray([numbers.get(case.label, -1) for case in cases], dtype=np.int32)
    return Problem(
        fit=whole.take(np.arange(first)),
        whole=whole,
        validation=Cases(asked, targets, group),
        test=Cases(Sequences.of(known).tails(LONGEST), labels, same_session(cases)),
        n_items=len(numbers),
        facts=ItemFacts(),
        k=PLACES,
        measures=(
            Measure(f"P@{PLACES}", hits(PLACES)),
            Measure(f"MRR@{PLACES}", reciprocal(PLACES)),
        ),
        counts={
            "train_sessions": len(sessions),
            "train_clicks": len(whole.items),
            "items": len(numbers),
            "validation_cases": int(sizes.sum()),
            "test_cases": len(cases),
            "test_clicks_unknown": sum(len(c.session) for c in cases) - sum(map(len, known)),
            "test_labels_unknown": int((labels < 0).sum()),
        },
    )


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

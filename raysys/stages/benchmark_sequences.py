"""`raysys benchmark sequences`: the last item of each user's sequence, ranked among all items.

Leave-one-out as in SASRec (Kang and McAuley, ICDM 2018), but with full ranking: HIT@10 says how
often the last item is among the first 10 of all items, NDCG@10 how high. The second-last items of
some users are validation; nothing is taken out of the ranking, not even what a user has had.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysys.datasets.sequence_files import NOTHING, read_sequence_file
from raysys.datasets.sequence_lists import Lists, renumbered
from raysys.datasets.sequence_names import Columns
from raysys.datasets.sequence_tables import Forced
from raysys.datasets.sequences import numbered, read_attributes
from raysys.errors import UserError
from raysys.learners.sequence_protocol import ItemFacts, Sequences
from raysys.stages.benchmark_next_item import Trial
from raysys.stages.next_item_problem import (
    LONGEST,
    Cases,
    Measure,
    Problem,
    discounted,
    hits,
    refuse_one_item,
)

PLACES = 10
VALIDATION_CASES = 5000


def run(
    path: Path,
    *,
    attributes: Path | None = None,
    minutes: float,
    seed: int = 0,
    columns: Columns = NOTHING,
    form: Forced = "auto",
) -> dict[str, Any]:
    """The report of one run.

    Args:
        path: text lines `user item item …`, items in the order of time, or one of the other
            formats in docs/benchmark.md.
        attributes: JSON object, attributes by item; None: `STEM_attributes.json`, packed or not,
            beside `path`, if it is there.
        minutes: that all of it may take.
        seed: of everything random.
        columns: that are named; others are told by names or values.
        form: whether a row is an event, or a line a user's list.

    Raises:
        UserError: a file that cannot be read, a malformed line, or too little to learn from.
    """
    began = time.monotonic()
    sequences = read_sequence_file(path, columns, form)
    problem, found = _with_attributes(sequences, path, attributes, seed)
    report = Trial(problem, minutes, seed, began).run()
    source = str(found) if found else None
    told = {"file": str(path), "read_as": sequences.read_as, "attributes": source}
    return {"benchmark": "sequences", **told, **report}


def read(
    path: Path, attributes: Path | None = None, *, seed: int = 0
) -> tuple[Problem, Path | None]:
    """A file of sequences, divided, and the file of attributes that was read with it.

    Raises:
        UserError: see `run`.
    """
    return _with_attributes(read_sequence_file(path), path, attributes, seed)


def _with_attributes(
    sequences: Lists, path: Path, attributes: Path | None, seed: int
) -> tuple[Problem, Path | None]:
    found = attributes or beside(path)
    told = read_attributes(found) if found else {}
    problem = divided(sequences, told, seed=seed, where=str(path))
    problem.counts.update(sequences.counts)
    return problem, found


def beside(path: Path) -> Path | None:
    """The file of attributes that belongs to a file of sequences by its name, if there is one."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    for ending in (".json", ".json.gz"):
        candidate = path.with_name(f"{stem}_attributes{ending}")
        if candidate.is_file():
            return candidate
    return None


def divided(
    sequences: Lists | Sequence[list[str]],
    attributes: dict[str, list[str]],
    *,
    seed: int = 0,
    where: str = "",
) -> Problem:
    """The last item is the test; the second-last of some users (at most half) is validation.

    Users with one item are learned from and not asked. An item that comes up as some user's last
    only has a number, but is never learned of.

    Raises:
        UserError: fewer than ten users have three items, or there is but one item.
    """
    told = sequences if isinstance(sequences, Lists) else Lists.of(sequences)
    every = np.arange(len(told))
    asked = np.flatnonzero(told.sizes > 1)
    last = told.offsets[asked + 1] - 1
    before = np.ones(len(told.items), dtype=bool)
    before[last] = False
    items, order = renumbered(told.items[before], len(told.names))
    number = np.full(len(told.names), -1, dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    numbers = {told.names[old]: new for new, old in enumerate(order.tolist())}
    sizes = told.sizes - (told.sizes > 1)
    whole = Sequences(items, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    able = np.flatnonzero(whole.sizes > 1)
    if len(able) < 10:
        raise UserError(
            f"{len(able)} users with three items and more are too few to learn from and validate",
            where=where,
            mend="give at least ten",
        )
    refuse_one_item(len(numbers), where)
    rng = np.random.default_rng(seed)
    n = min(VALIDATION_CASES, len(able) // 2)
    held = np.sort(rng.choice(able, n, replace=False))
    stop = whole.offsets[1:].copy()
    stop[held] -= 1
    labels = number[told.items[last]]
    test = whole.take(asked).tails(LONGEST)
    facts = _facts(attributes, numbers)
    return Problem(
        fit=whole.cut(every, whole.offsets[:-1], stop),
        whole=whole,
        validation=Cases(
            whole.without_last(held).tails(LONGEST), whole.items[stop[held]], np.arange(n)
        ),
        test=Cases(test, labels, np.arange(len(asked))),
        n_items=len(numbers),
        facts=facts,
        k=PLACES,
        measures=(
            Measure(f"HIT@{PLACES}", hits(PLACES)),
            Measure(f"NDCG@{PLACES}", discounted(PLACES)),
        ),
        counts={
            "users": len(told),
            "events": len(told.items),
            "items": len(numbers),
            "attributes": facts.n_attributes,
            "validation_cases": n,
            "test_cases": len(asked),
            "users_not_asked": len(told) - len(asked),
            "test_labels_unknown": int((labels < 0).sum()),
        },
    )


def _facts(attributes: dict[str, list[str]], numbers: dict[str, int]) -> ItemFacts:
    """Attributes of the numbered items; those of others are left out."""
    known = numbered(attributes[item] for item in numbers if item in attributes)
    if not known:
        return ItemFacts()
    lists = [sorted({known[a] for a in attributes.get(item, ())}) for item in numbers]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists])])
    flat = np.asarray([a for each in lists for a in each], dtype=np.int32)
    return ItemFacts(flat, offsets.astype(np.int64))

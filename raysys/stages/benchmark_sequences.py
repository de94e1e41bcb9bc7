"""`raysys benchmark sequences`: the last item of each user's sequence, ranked among all items.

Leave-one-out as in SASRec (Kang and McAuley, ICDM 2018), but with full ranking: HIT@10 says how
often the last item is among the first 10 of all items, NDCG@10 how high. The second-last items of
some users are validation; nothing is taken out of the ranking, not even what a user has had.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from raysys.datasets.sequences import numbered, read_attributes, read_user_sequences
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
    path: Path, *, attributes: Path | None = None, minutes: float, seed: int = 0
) -> dict[str, Any]:
    """The report of one run.

    Args:
        path: text lines `user item item …`, items in the order of time.
        attributes: JSON object, attributes by item; None: `STEM_attributes.json`, packed or not,
            beside `path`, if it is there.
        minutes: that all of it may take.
        seed: of everything random.

    Raises:
        UserError: a file that cannot be read, a malformed line, or too little to learn from.
    """
    began = time.monotonic()
    problem, found = read(path, attributes, seed=seed)
    report = Trial(problem, minutes, seed, began).run()
    source = str(found) if found else None
    return {"benchmark": "sequences", "file": str(path), "attributes": source, **report}


def read(
    path: Path, attributes: Path | None = None, *, seed: int = 0
) -> tuple[Problem, Path | None]:
    """A file of sequences, divided, and the file of attributes that was read with it.

    Raises:
        UserError: see `run`.
    """
    found = attributes or beside(path)
    told = read_attributes(found) if found else {}
    sequences = list(read_user_sequences(path).values())
    return divided(sequences, told, seed=seed, where=str(path)), found


def beside(path: Path) -> Path | None:
    """The file of attributes that belongs to a file of sequences by its name, if there is one."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    for ending in (".json", ".json.gz"):
        candidate = path.with_name(f"{stem}_attributes{ending}")
        if candidate.is_file():
            return candidate
    return None


def divided(
    sequences: list[list[str]],
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
    before = [items[:-1] if len(items) > 1 else items for items in sequences]
    numbers = numbered(before)
    whole = Sequences.of([[numbers[item] for item in items] for items in before])
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
    every = np.arange(len(whole))
    asked = np.flatnonzero([len(items) > 1 for items in sequences])
    labels = [numbers.get(sequences[i][-1], -1) for i in asked]
    test = whole.take(asked).tails(LONGEST)
    facts = _facts(attributes, numbers)
    return Problem(
        fit=whole.cut(every, whole.offsets[:-1], stop),
        whole=whole,
        validation=Cases(
            whole.without_last(held).tails(LONGEST), whole.items[stop[held]], np.arange(n)
        ),
        test=Cases(test, np.asarray(labels, dtype=np.int32), np.arange(len(asked))),
        n_items=len(numbers),
        facts=facts,
        k=PLACES,
        measures=(
            Measure(f"HIT@{PLACES}", hits(PLACES)),
            Measure(f"NDCG@{PLACES}", discounted(PLACES)),
        ),
        counts={
            "users": len(sequences),
            "events": sum(map(len, sequences)),
            "items": len(numbers),
            "attributes": facts.n_attributes,
            "validation_cases": n,
            "test_cases": len(asked),
            "users_not_asked": len(sequences) - len(asked),
            "test_labels_unknown": sum(label < 0 for label in labels),
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

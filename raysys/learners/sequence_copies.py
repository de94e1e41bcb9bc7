"""Changed copies of the sequences that a transformer learns from: cut, thinned, shuffled, filled.

Those of CL4SRec and CoSeRec (see `raysys.text.augment.histories`), as further sequences to learn
from rather than as a contrast. What is masked is left out: a sequence has no item for it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from raysys.learners.sequence_protocol import Float64, Sequences, joined
from raysys.retrieval.covisitation import CoVisitation
from raysys.text.augment import Augmentation, augment_histories
from raysys.text.augment.settings import Insert, Substitute


def with_copies(
    pieces: Sequences, settings: Augmentation, n_items: int, longest: int
) -> tuple[Sequences, Float64, dict[str, int]]:
    """Training sequences and, behind them all, their copies.

    Args:
        pieces: to learn from, of two items or more, in the order of time within each.
        settings: what to do; methods for histories.
        n_items: how many items there are.
        longest: items of a copy that are kept, the last ones.

    Returns:
        The sequences, without the times of their items if there are copies; how often each is
        drawn, beside its age: float64[s + m], by `weights` of the settings; copies by method.
    """
    if not settings:
        return pieces, np.ones(len(pieces)), {}
    near = None
    if any(isinstance(method, Substitute | Insert) for method in settings.methods):
        near = CoVisitation.fit(pieces.owner, pieces.items, n_items)
    newest_first = [pieces[i][::-1] for i in range(len(pieces))]
    made = augment_histories(newest_first, np.arange(len(pieces)), settings, near)
    rows, lists, names = [], [], []
    for row, history, name in zip(made.row.tolist(), made.history, made.augmented, strict=True):
        items = history[history >= 0][::-1][-longest:]
        if len(items) > 1 and not np.array_equal(items, pieces[row]):
            rows.append(row)
            lists.append(items.tolist())
            names.append(name)
    source = np.array(rows, dtype=np.int64)
    copies = Sequences.of(lists)
    moment = None if pieces.moment is None else pieces.moment[source]
    every = joined(pieces, Sequences(copies.items, copies.offsets, moment))
    source = np.concatenate([np.arange(len(pieces)), source])
    share = np.ones(len(source))
    if settings.weights == "shared":
        share = 1 / np.bincount(source)[source]
    found = Counter(names)
    return every, share, {method.kind: found[method.kind] for method in settings.methods}

"""Which rows a fit looks at: requests one can learn from, and some of their candidates."""

from __future__ import annotations

import zlib

import numpy as np

from raysys.features.batch import Batch


def with_some_positive(batch: Batch) -> Batch:
    """Only requests that form pairs: without a positive there is no gradient, just work."""
    label = batch.label
    assert label is not None
    positives = np.bincount(batch.group, label > 0, minlength=batch.n_requests)
    useful = np.flatnonzero((positives > 0) & (batch.sizes > 1))
    return batch.take_requests(useful)


def thinned(batch: Batch, most: int, seed: int, learner: str) -> Batch:
    """At most `most` candidates a request (0: all), every positive among them.

    Each learner draws others: what one does not see another does, so that their errors differ and
    an ensemble gains more.

    Args:
        batch: labelled rows.
        most: candidates of a request; more only where it has more positives.
        seed: of the fit.
        learner: its name.
    """
    if not most or not (batch.sizes > most).any():
        return batch
    assert batch.label is not None and batch.weight is not None
    chance = np.random.default_rng([seed, zlib.crc32(learner.encode())]).random(len(batch))
    order = np.lexsort((np.where(batch.label > 0, -1.0, chance), batch.group))
    rank = np.empty(len(batch), dtype=np.int64)
    rank[order] = np.arange(len(batch)) - batch.offsets[:-1][batch.group]
    return batch.take_rows(np.flatnonzero((rank < most) | (batch.label > 0)))

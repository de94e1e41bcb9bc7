"""What learners check and watch while they fit: labels there are, NDCG@10 on the tail."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples

LONGEST = 10_000
"""Candidates of one request that LightGBM takes when it learns an order."""


class NDCG:
    """NDCG@k of scores over one batch, prepared once and called after every boosting round.

    The ideal counts everything relevant (`Batch.n_relevant`), retrieved or not, as the report
    does. Requests with nothing relevant are left out. Ties keep the order of the candidates.
    (Järvelin and Kekäläinen 2002, with gain = label.)

    Args:
        batch: labelled rows.
        k: how many positions count.
    """

    def __init__(self, batch: Batch, k: int = 10) -> None:
        if batch.label is None:
            raise ValueError("NDCG needs labels")
        sizes = batch.sizes
        width = max(k, int(sizes.max(initial=0)))
        self._rows = np.arange(len(batch)) - batch.offsets[:-1][batch.group]
        self._group = batch.group
        self._shape = (batch.n_requests, width)
        self._gain = np.zeros(self._shape, dtype=np.float32)
        self._gain[self._group, self._rows] = batch.label
        self._discount = 1.0 / np.log2(np.arange(2, k + 2))
        ideal = -np.sort(-self._gain, axis=1)[:, :k]
        if batch.n_relevant is not None:
            # what retrieval missed counts with gain one, behind whatever was retrieved
            missed = np.maximum(batch.n_relevant - (self._gain > 0).sum(1), 0)
            found = (ideal > 0).sum(1)
            place = np.arange(k)[None, :]
            ideal = np.where(
                (place >= found[:, None]) & (place < (found + missed)[:, None]), 1.0, ideal
            )
            ideal = -np.sort(-ideal, axis=1)
        self._ideal = ideal @ self._discount
        self._k = k

    def __call__(self, scores: npt.NDArray[np.floating]) -> float:
        """Mean NDCG@k, 0 … 1; 0 when no request has anything relevant."""
        each = self.each(scores)
        some = ~np.isnan(each)
        return float(each[some].mean()) if some.any() else 0.0

    def each(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """NDCG@k of every request: float64[r]; NaN where nothing is relevant."""
        padded = np.full(self._shape, -np.inf)
        padded[self._group, self._rows] = scores
        top = np.argsort(-padded, axis=1, kind="stable")[:, : self._k]
        found = np.take_along_axis(self._gain, top, axis=1) @ self._discount
        with np.errstate(invalid="ignore"):
            return np.where(self._ideal > 0, found / self._ideal, np.nan)


def require_positives(examples: Examples) -> None:
    """Look for one retrieved row with a positive label, reading two columns only.

    Raises:
        UserError: there is none, so nothing can be learned.
    """
    for path in examples.files("examples"):
        table = pq.read_table(path, columns=["label", "retrieved"], partitioning=None)
        if pc.any(pc.and_(pc.greater(table["label"], 0), table["retrieved"])).as_py():
            return
    raise no_positives(examples)


def no_positives(examples: Examples) -> UserError:
    """The error for examples in which nothing retrieved was wanted."""
    folds = ", ".join(str(fold) for fold in examples.folds)
    return UserError(
        f"no positive label among the retrieved candidates of fold {folds}",
        where=str(examples.root),
        mend="take more events, fewer folds, or more candidates in `raysys features`",
    )


def require_short_lists(longest: int, where: str) -> None:
    """Look for requests, or queries, of more candidates than LightGBM orders.

    Raises:
        UserError: there is one.
    """
    if longest > LONGEST:
        raise UserError(
            f"a request has {longest:,} candidates, and LightGBM orders {LONGEST:,} at most",
            where=where,
            mend="set candidates to keep fewer that nobody wanted, or leave candidates out before",
        )


def require_columns(wanted: Sequence[str], names: Sequence[str], *, where: str) -> None:
    """Check that the feature plan has what the settings name.

    Raises:
        UserError: naming the first that is missing and the nearest that exists.
    """
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"no feature {name!r}{hint}", where=where, mend=f"there are {', '.join(names)}"
            )


def chosen_features(
    names: Sequence[str], wanted: Sequence[str], exclude: Sequence[str], *, where: str
) -> tuple[str, ...]:
    """Those of a plan's features that a learner reads, in the plan's order.

    Args:
        names: of the plan's features.
        wanted: names or patterns; empty: all.
        exclude: names or patterns that are not read.
        where: the settings, for errors.

    Raises:
        UserError: a pattern that matches nothing, or nothing is left.
    """
    for key, patterns in (("features", wanted), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                require_columns([pattern], names, where=f"{where}.{key}")

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    chosen = tuple(
        name
        for name in names
        if (not wanted or matches(name, wanted)) and not matches(name, exclude)
    )
    if not chosen:
        raise UserError("every feature is excluded", where=f"{where}.exclude")
    return chosen

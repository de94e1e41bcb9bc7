"""Out-of-fold scores of training rows by group, and forward folds without labels that overlap.

By time a model has seen most users and queries that it scores. Where those to come are others, its
scores are too good for that, and members that know a user by heart get too much say. By group each
training row is scored by a model that was fitted without the whole group: the user, the query or
the session. Such a model has seen later moments than those it scores, as other groups go on; so
the validation fold stays one of time, scored by the models that are served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.ensemble.folds import BaseScores, base_score
from raysys.ensemble.splits import clear_of, folds_by_group
from raysys.errors import UserError
from raysys.features.examples import Examples, Share
from raysys.learners.protocol import Model

GROUPS: Final = "groups.parquet"
"""Beside base scores by group: request, share, and its user, query or session as a number."""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupFolds:
    """Training requests cut into shares of whole groups.

    Attributes:
        table: see `GROUPS`; its last column is named by what was cut.
        by: `user`, `query` or `session`.
        names: of the shares, such as `user=0`.
    """

    table: Path
    by: str
    names: tuple[str, ...]

    @classmethod
    def write(
        cls, table: Path, by: str, train: Examples, group: Int64, folds: int, seed: int
    ) -> GroupFolds:
        """Cut the requests of a view.

        Args:
            table: the file to write.
            by: what the groups are.
            train: of the train folds.
            group: int64[r], of each of its requests; a negative number is a group of its own.
            folds: shares.
            seed: of which groups share one.

        Raises:
            UserError: fewer groups than shares.
        """
        try:
            share = folds_by_group(group, folds, seed)
        except ValueError as error:
            raise UserError(
                f"by {by}: {error}",
                where="out_of_fold.folds",
                mend="give fewer folds, or take by: time",
            ) from None
        request = train.requests()["request"].to_numpy()
        columns = {"request": request, "share": share.astype(np.int32), by: group}
        table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), table, compression="zstd")
        return cls(table, by, tuple(f"{by}={number}" for number in range(folds)))

    @classmethod
    def read(cls, table: Path) -> GroupFolds | None:
        """What `write` wrote; None where the scores are by time alone."""
        if not table.is_file():
            return None
        content = pq.read_table(table, partitioning=None)
        by = content.column_names[-1]
        folds = int(content["share"].to_numpy().max()) + 1
        return cls(table, by, tuple(f"{by}={number}" for number in range(folds)))

    def fits(self, train: Examples) -> dict[str, Examples]:
        """What the model of each share is fitted on: the train folds without its groups.

        Raises:
            ValueError: a group would be scored by a model that saw it.
        """
        views = {
            name: replace(train, share=Share(self.table, number, inside=False))
            for number, name in enumerate(self.names)
        }
        for name, view in views.items():
            both = self._groups(view) & self._groups(self.scored(train, name))
            if both:
                raise ValueError(f"{name} would be scored by a model that saw {len(both)} of it")
        return views

    def scored(self, examples: Examples, name: str) -> Examples:
        """The requests of a view that the model of a share scores."""
        number = self.names.index(name)
        return replace(examples, share=Share(self.table, number, inside=True))

    def _groups(self, view: Examples) -> set[int]:
        """Known groups of a view's requests."""
        content = pq.read_table(self.table, partitioning=None)
        held = np.isin(content["request"].to_numpy(), view.requests()["request"].to_numpy())
        group = content[self.by].to_numpy()[held]
        return set(group[group >= 0].tolist())

    def score(
        self,
        models: Mapping[str, Mapping[str, Model]],
        train: Examples,
        scored: Callable[[], object] = lambda: None,
    ) -> BaseScores:
        """Base scores of all training rows, each by the model that did not see its group.

        Args:
            models: learner -> share -> its model.
            train: of the train folds.
            scored: called after every model that has scored its share.

        Scores that are not finite are kept as they are, as in `score_forward`.

        Raises:
            ValueError: scores of a wrong shape; names the learner.
        """
        parts = []
        shares = pq.read_table(self.table, columns=["request", "share"], partitioning=None)
        members = [
            shares.filter(pc.equal(shares["share"], number))["request"].to_numpy()
            for number in range(len(self.names))
        ]
        for fold in train.folds:  # one in memory at a time, read once
            whole = train.with_folds(fold).batch()
            assert whole.request is not None, "examples have requests"
            for share, requests in zip(self.names, members, strict=True):
                here = np.flatnonzero(np.isin(whole.request, requests))
                if len(here):
                    batch = whole.take_requests(here)
                    base = {
                        name: base_score(name, by_share[share], batch, finite=False)
                        for name, by_share in models.items()
                    }
                    parts.append(BaseScores.of(batch, fold, base))
                if fold == train.folds[-1]:
                    for _ in models:
                        scored()
        scores = BaseScores.concatenate(parts)
        return scores.take(np.argsort(scores.request, kind="stable"))


def purged(fits: Mapping[int, Examples], window_ms: int, folder: Path) -> dict[int, Examples]:
    """Forward folds without requests whose label may still change when the scored fold begins.

    Args:
        fits: from `forward_folds`.
        window_ms: how long after a request its label may still change; 0: nothing is left out.
        folder: for the tables of what is left; readable by every worker.

    Raises:
        UserError: no request is left to fit on before some fold.
    """
    if not window_ms:
        return dict(fits)
    folder.mkdir(parents=True, exist_ok=True)
    views = {}
    for fold, view in fits.items():
        every = view.with_folds(*view.folds, fold)
        request, moment = every.requests()["request"].to_numpy(), moments_of(every)
        scored = np.isin(request, view.with_folds(fold).requests()["request"].to_numpy())
        kept = clear_of(scored, moment, moment + window_ms)
        if not kept.any():
            raise UserError(
                f"labels take {window_ms / 3_600_000:g} hours to settle: no request is left to fit "
                f"on before fold {fold}",
                where="out_of_fold.purge_hours",
                mend="give fewer hours or fewer folds",
            )
        table = folder / f"purged-{fold}.parquet"
        pq.write_table(pa.table({"request": request, "share": kept.astype(np.int32)}), table)
        views[fold] = replace(view, share=Share(table, 1, inside=True))
    return views


def moments_of(examples: Examples) -> Int64:
    """When each request of a view happened: int64[r], UTC ms."""
    moments = examples.requests()["timestamp"].to_numpy()
    if np.issubdtype(moments.dtype, np.datetime64):
        moments = moments.astype("datetime64[ms]").astype(np.int64)
    return moments.astype(np.int64)

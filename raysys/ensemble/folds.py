"""Out-of-fold base scores by time: model i is fitted on folds before i and scores fold i.

Folds are blocks of time, so no model ever saw a moment later than what it scores. The model of
the last fold is the one that is served; its out-of-fold scores are those of the served learner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.ensemble.normalise import normalise
from raysys.ensemble.ranking import Judgements, rows_of
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.protocol import Context, Learner, Model

_KEYS = ("request", "item", "label")

K = TypeVar("K", bound=int | str)


@dataclass(frozen=True)
class BaseScores:
    """What every learner says of the candidates of r requests, n rows side by side by request.

    Attributes:
        request: int32[r], ordinals in the requests table, in time order.
        fold: int32[r].
        judgements: items, labels and offsets of the n rows, relevant items of the requests.
        base: float32[n] by learner.
    """

    request: npt.NDArray[np.int32]
    fold: npt.NDArray[np.int32]
    judgements: Judgements
    base: dict[str, npt.NDArray[np.float32]]

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return len(self.request)

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64[r + 1]; rows of request i are offsets[i] : offsets[i + 1]."""
        return self.judgements.offsets

    @property
    def label(self) -> npt.NDArray[np.float32]:
        """float32[n]."""
        return self.judgements.label

    @cached_property
    def folds(self) -> tuple[int, ...]:
        """Folds that are in it, in time order."""
        return tuple(int(fold) for fold in np.unique(self.fold))

    @classmethod
    def of(cls, batch: Batch, fold: int, base: Mapping[str, npt.NDArray[np.float32]]) -> BaseScores:
        """Scores of one fold's batch."""
        if batch.request is None:
            raise ValueError("a batch without requests has no folds")
        folds = np.full(batch.n_requests, fold, dtype=np.int32)
        return cls(batch.request, folds, Judgements.of(batch), dict(base))

    @classmethod
    def concatenate(cls, parts: Sequence[BaseScores]) -> BaseScores:
        """Several folds in one, in the given order; all need the same learners."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        judgements = Judgements(
            item=np.concatenate([part.judgements.item for part in parts]),
            label=np.concatenate([part.label for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            n_relevant=np.concatenate([part.judgements.n_relevant for part in parts]),
        )
        return cls(
            request=np.concatenate([part.request for part in parts]),
            fold=np.concatenate([part.fold for part in parts]),
            judgements=judgements,
            base={
                name: np.concatenate([part.base[name] for part in parts]) for name in parts[0].base
            },
        )

    def take(self, which: npt.NDArray[np.int64]) -> BaseScores:
        """The given requests, in the given order."""
        rows, _ = rows_of(self.offsets, which)
        return BaseScores(
            self.request[which],
            self.fold[which],
            self.judgements.take(which),
            {name: scores[rows] for name, scores in self.base.items()},
        )

    def only(self, members: Collection[str]) -> BaseScores:
        """The same requests, fewer members."""
        base = {name: said for name, said in self.base.items() if name in members}
        return BaseScores(self.request, self.fold, self.judgements, base)

    def together(self, folds: Collection[int]) -> BaseScores:
        """The requests of these folds, in time order, as if the last of the folds held them all."""
        kept = np.flatnonzero(np.isin(self.fold, list(folds)))
        found = self.take(kept[np.argsort(self.request[kept], kind="stable")])
        return replace(found, fold=np.full(found.n_requests, max(folds), dtype=np.int32))

    def write(self, folder: Path) -> None:
        """Write `fold=K.parquet`: request, item, label, one float32 column a learner."""
        folder.mkdir(parents=True, exist_ok=True)
        owner = np.repeat(np.arange(self.n_requests), np.diff(self.offsets))
        table = pa.table(
            {
                "request": self.request[owner],
                "item": self.judgements.item,
                "label": self.label,
                **self.base,
            }
        )
        for fold in self.folds:
            rows = pa.array(self.fold[owner] == fold)
            path = folder / f"fold={fold}.parquet"
            pq.write_table(table.filter(rows), path, compression="zstd")

    @classmethod
    def read(cls, folder: Path, examples: Examples) -> BaseScores:
        """Read what `write` wrote.

        Args:
            folder: of the Parquet files.
            examples: a view of exactly the folds to read; it knows the requests.

        Raises:
            UserError: a fold has no scores.
        """
        parts = []
        for fold in examples.folds:
            path = folder / f"fold={fold}.parquet"
            if not path.is_file():
                raise UserError("no base scores", where=str(path), mend="run `raysys train`")
            table = pq.read_table(path, partitioning=None)
            requests = examples.with_folds(fold).requests()
            ordinals = requests["request"].to_numpy()
            place = np.searchsorted(ordinals, table["request"].to_numpy())
            sizes = np.bincount(place, minlength=len(ordinals))
            judgements = Judgements(
                item=table["item"].to_numpy(),
                label=table["label"].to_numpy(),
                offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
                n_relevant=requests["n_relevant"].to_numpy(),
            )
            base = {
                name: table[name].to_numpy() for name in table.column_names if name not in _KEYS
            }
            folds = np.full(len(ordinals), fold, dtype=np.int32)
            parts.append(cls(ordinals, folds, judgements, base))
        return cls.concatenate(parts)


def forward_folds(examples: Examples, last: int, count: int | None = None) -> dict[int, Examples]:
    """What each out-of-fold model is fitted on: fold i -> folds 0 … i-1, for i = 1 … last.

    Args:
        examples: any view of the features folder.
        last: the validation fold, scored by the models that are served.
        count: only the last so many; None: all.

    Raises:
        UserError: there is no fold before the last.
    """
    if last < 1:
        raise UserError(
            "out-of-fold scores need a fold to fit on before the one they score",
            where=str(examples.root),
            mend="take at least one train fold in `raysys features`",
        )
    first = 1 if count is None else max(1, last + 1 - count)
    return {fold: examples.with_folds(*range(fold)) for fold in range(first, last + 1)}


def fit_forward(learner: Learner, fits: Mapping[K, Examples], context: Context) -> dict[K, Model]:
    """One model for every fold it is to score, fitted on what `fits` says.

    Args:
        learner: to fit.
        fits: views by the fold of time that is scored, or by the name of a share of groups.
        context: see `Context`.

    Raises:
        ValueError: a model would be fitted on the fold or the share it scores, or on a later fold.
    """
    for fold, view in fits.items():
        seen = max(view.folds) >= fold if isinstance(fold, int) else _sees(view, fold)
        if seen:
            raise ValueError(f"fold {fold} would be scored by a model fitted on {view.folds}")
    models = learner.fit_folds(list(fits.values()), context)
    if len(models) != len(fits):
        raise ValueError(f"{learner.name} gave {len(models)} models for {len(fits)} folds")
    return dict(zip(fits, models, strict=True))


def _sees(view: Examples, share: str) -> bool:
    """Whether a view holds the share of groups of this name, such as `user=2`."""
    told = view.share
    return told is None or told.inside or told.number != int(share.rpartition("=")[2])


def score_forward(
    models: Mapping[str, Mapping[int, Model]],
    examples: Examples,
    scored: Callable[[], object] = lambda: None,
) -> BaseScores:
    """Out-of-fold base scores of all learners, one fold in memory at a time.

    Args:
        models: learner -> fold -> the model that scores it, from `fit_forward`.
        examples: any view of the features folder.
        scored: called after every model that has scored its fold.

    Scores that are not finite are kept as they are: `unsound` tells whose they are.

    Raises:
        ValueError: scores of a wrong shape; names the learner.
    """
    folds = sorted(next(iter(models.values())))
    parts = []
    for fold in folds:
        batch = examples.with_folds(fold).batch()
        base = {}
        for name, by_fold in models.items():
            base[name] = base_score(name, by_fold[fold], batch, finite=False)
            scored()
        parts.append(BaseScores.of(batch, fold, base))
    return BaseScores.concatenate(parts)


def unsound(scores: BaseScores) -> dict[str, str]:
    """Members that can have no say, and why: NaN or infinite scores, or nothing told apart.

    Args:
        scores: of all members, of any folds.
    """
    reasons = {}
    for name, said in scores.base.items():
        bad = int((~np.isfinite(said)).sum())
        if bad:
            reasons[name] = f"{bad:,} of {len(said):,} scores are not finite"
        elif not normalise(said, scores.offsets, "standard").any():
            reasons[name] = "it cannot tell the candidates of any request apart"
    return reasons


def base_score(
    name: str, model: Model, batch: Batch, *, finite: bool = True
) -> npt.NDArray[np.float32]:
    """Checked base scores of one model: float32[n].

    Args:
        name: of the learner, for messages.
        model: fitted.
        batch: what it is to score.
        finite: refuse scores that are not.

    Raises:
        ValueError: not float32[n], or not finite; names the learner.
    """
    scores = np.asarray(model.score(batch), dtype=np.float32)
    if scores.shape != (len(batch),):
        raise ValueError(f"{name} gave scores of shape {scores.shape} for {len(batch)} candidates")
    if finite and not np.isfinite(scores).all():
        raise ValueError(f"{name} gave scores that are not finite")
    return scores

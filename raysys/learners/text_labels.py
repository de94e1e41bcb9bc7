"""What a classifier learns from: texts, the codes of their labels, ratings; checked once for all.

Labels of a hierarchy are paths, `schema.LABELLED_TEXTS`: names from the top with ` > ` between. A
classifier predicts whole paths, and what it says of a level is the sum over the paths below, so
that no prediction contradicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.errors import UserError

SEPARATOR = " > "
SENTIMENTS = ("negative", "neutral", "positive")
SHOWN = 5

LabelTask = Literal["classify", "sentiment"]
Codes = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelSet:
    """The labels that a model knows, in the order of their codes.

    Attributes:
        names: distinct; of sentiments from negative to positive, else sorted.
    """

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """From the top to the whole paths; of labels that are no paths just these."""
        paths = [name.split(SEPARATOR) for name in self.names]
        deepest = max(map(len, paths), default=1)
        found = []
        for depth in range(1, deepest + 1):
            cut = [SEPARATOR.join(path[:depth]) for path in paths]
            nodes = tuple(dict.fromkeys(cut))
            place = {node: at for at, node in enumerate(nodes)}
            found.append(Level(nodes, np.array([place[node] for node in cut], dtype=np.int64)))
        return tuple(found)

    def codes(self, labels: Sequence[str | None], *, where: str) -> Codes:
        """int64[n], -1 for null.

        Raises:
            UserError: a label that is none of these.
        """
        place: dict[str | None, int] = {name: at for at, name in enumerate(self.names)}
        place[None] = -1
        strange = list(dict.fromkeys(label for label in labels if label not in place))
        if strange:
            raise UserError(
                f"{len(strange)} labels outside the set: {_listed(strange)}",
                where=where,
                mend=f"known are {_listed(self.names)}; give each label a training text, or leave "
                "its texts out",
            )
        return np.array([place[label] for label in labels], dtype=np.int64)


@dataclass(frozen=True)
class Level:
    """One level of a hierarchy.

    Attributes:
        nodes: names, as paths from the top.
        of_label: int64[labels], the node that each label is or lies below.
    """

    nodes: tuple[str, ...]
    of_label: Codes

    def marginal(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Of labels to those of nodes: float64[n, labels] -> float64[n, nodes]."""
        member = np.zeros((len(self.of_label), len(self.nodes)))
        member[np.arange(len(self.of_label)), self.of_label] = 1.0
        return probabilities @ member


@dataclass(frozen=True)
class LabelledTexts:
    """Texts that are not empty, with what is known of each.

    Attributes:
        texts: n of them.
        codes: int64[n], see `LabelSet`; -1 where no label is known.
        rating: float32[n], NaN where none is known.
        weight: float32[n], in the loss: 1, or what an example shares with its copies.
        origin: int64[n], ascending: the same number for an example and the copies behind it.
    """

    texts: list[str]
    codes: Codes
    rating: Float32
    weight: Float32
    origin: Codes

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def rated(self) -> bool:
        """Whether a rating is known of any text."""
        return bool(np.isfinite(self.rating).any())

    @property
    def original(self) -> npt.NDArray[np.bool_]:
        """Which are no copies: bool[n]."""
        return np.diff(self.origin, prepend=-1) > 0


def read_training(
    train: pa.Table, validation: pa.Table, task: LabelTask
) -> tuple[LabelSet, LabelledTexts, LabelledTexts]:
    """Labels, training texts and validation texts of tables like `schema.LABELLED_TEXTS`.

    Empty texts are left out: nothing can be learned from them. Ratings are read for sentiment.

    Raises:
        UserError: a column is missing; there are no labels, one only, or some of validation that
            training lacks; labels of sentiment that are none.
    """
    rows, held = _rows(train, task, "train"), _rows(validation, task, "validation")
    found = {label for label in rows[1] if label is not None}
    if task == "sentiment":
        LabelSet(SENTIMENTS).codes(rows[1], where="column label of split train")
    if len(found) < 2:
        what = f"only one label, {next(iter(found))!r}" if found else "no labels"
        raise UserError(
            f"{what} in {len(rows[0]):,} texts: there is nothing to tell apart",
            where="column label of split train",
            mend="give texts of at least two labels",
        )
    order = SENTIMENTS if task == "sentiment" else sorted(found)
    labels = LabelSet(tuple(name for name in order if name in found))
    return labels, _labelled(rows, labels, "train"), _labelled(held, labels, "validation")


Rows = tuple[list[str], list[str | None], Float32, Float32, Codes]


def _rows(table: pa.Table, task: LabelTask, split: str) -> Rows:
    """Texts that are not empty, labels (null and blank are the same), ratings, weights, origins."""
    for name in ("text", "label"):
        if name not in table.column_names:
            raise UserError(
                f"no column {name!r}",
                where=f"split {split}",
                mend=f"there are {_listed(table.column_names)}",
            )
    texts = [text or "" for text in table["text"].to_pylist()]
    labels = [(label or "").strip() or None for label in table["label"].to_pylist()]
    rating = np.full(len(texts), np.nan, dtype=np.float32)
    if task == "sentiment" and "rating" in table.column_names:
        rating = table["rating"].cast(pa.float32()).to_numpy(zero_copy_only=False)
    kept = np.array([bool(text.strip()) for text in texts], dtype=bool)
    kept &= np.array([label is not None for label in labels], dtype=bool) | np.isfinite(rating)
    chosen = np.flatnonzero(kept)
    weight, origin = np.ones(len(texts), dtype=np.float32), np.arange(len(texts))
    if "augmented" in table.column_names:
        weight = table["weight"].to_numpy().astype(np.float32)
        origin = np.cumsum(table["augmented"].is_null().to_numpy()) - 1
    _, origin = np.unique(origin[chosen], return_inverse=True)
    told = [texts[at] for at in chosen], [labels[at] for at in chosen]
    return *told, rating[chosen], weight[chosen], origin.astype(np.int64)


def _labelled(rows: Rows, labels: LabelSet, split: str) -> LabelledTexts:
    texts, names, rating, weight, origin = rows
    codes = labels.codes(names, where=f"column label of split {split}")
    return LabelledTexts(texts, codes, rating, weight, origin)


def _listed(names: Sequence[str | None]) -> str:
    """The first few, quoted."""
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"

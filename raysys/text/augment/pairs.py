"""Copies of what the towers are fine-tuned on: a history's texts, and the items wanted after it.

A copy has the same wanted items; its history is changed, by a history method, or by a text method
in the texts themselves. Such texts are of no item: they are read in training and then forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.features.batch import Batch
from raysys.retrieval.covisitation import CoVisitation
from raysys.text.augment.draws import derived, keys_of, uniform
from raysys.text.augment.histories import Flat, augment_histories
from raysys.text.augment.settings import Augmentation, Insert, Substitute
from raysys.text.augment.table import AUGMENTED, augment_texts, counts
from raysys.text.histories import PAD, history_codes
from raysys.text.items import ItemTexts

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairCopies:
    """m copies of requests.

    Attributes:
        texts: further texts; their codes go on from those of the catalogue.
        row: int64[m], the request of the batch that each copies, ascending.
        history: int32[m, length], codes of texts, newest first, then `PAD`.
        augmented: m names of methods.
        weights: `shared` or `full`, see `Augmentation`.
    """

    texts: tuple[str, ...]
    row: Int64
    history: Int32
    augmented: npt.NDArray[np.object_]
    weights: str = "shared"

    def __len__(self) -> int:
        return len(self.row)

    def counts(self, settings: Augmentation) -> dict[str, int]:
        """How many copies each method of the settings made."""
        made = counts(self.augmented)
        return {method.kind: made.get(method.kind, 0) for method in settings.methods}

    def weight_of(self, n_requests: int) -> npt.NDArray[np.float32]:
        """Of the requests, then of the copies: float32[n_requests + m]."""
        source = np.concatenate([np.arange(n_requests), self.row])
        if self.weights == "full":
            return np.ones(len(source), dtype=np.float32)
        return (1 / np.bincount(source, minlength=n_requests)[source]).astype(np.float32)


def augment_pairs(
    batch: Batch, texts: ItemTexts, length: int, settings: Augmentation
) -> PairCopies:
    """Copies of the requests of a training batch that have a history, and something wanted.

    Args:
        batch: labelled requests of training folds, and of no other.
        texts: of the catalogue.
        length: of histories, in texts.
        settings: what to do.

    Raises:
        UserError: a thesaurus or a translation model that is not there.
    """
    history = history_codes(batch.history, texts, length)
    assert batch.label is not None
    wanted = np.bincount(batch.group, batch.label > 0, minlength=batch.n_requests) > 0
    rows = np.flatnonzero((history[:, 0] != PAD) & wanted)
    ids = np.arange(batch.n_requests) if batch.request is None else batch.request
    ids = ids[rows].astype(np.int64)
    further, by_text = _by_text(history[rows], ids, texts, settings)
    items = [batch.history[row][:length] for row in rows.tolist()]
    parts = [*by_text, _by_history(items, ids, texts, length, settings)]
    row = np.concatenate([rows[part[0]] for part in parts])
    codes = np.concatenate([part[1] for part in parts])
    names = np.concatenate([part[2] for part in parts])
    differs = (codes != history[row]).any(axis=1) & (codes[:, 0] != PAD)
    order = np.flatnonzero(differs)
    order = order[np.argsort(row[order], kind="stable")]
    return PairCopies(further, row[order], codes[order], names[order], settings.weights)


Part = tuple[Int64, Int32, npt.NDArray[np.object_]]
"""Rows, their changed histories (codes), names of methods."""


def _by_text(
    history: Int32, ids: Int64, texts: ItemTexts, settings: Augmentation
) -> tuple[tuple[str, ...], list[Part]]:
    """Copies whose texts are changed, and those texts."""
    certain = tuple(each.model_copy(update={"probability": 1.0}) for each in settings.text_methods)
    used = np.unique(history[history != PAD])
    lines = pl.Series("text", [texts.distinct[code] for code in used], dtype=pl.String)
    made = augment_texts(lines, lines, settings.model_copy(update={"methods": certain}))
    further: list[str] = []
    parts = []
    for method in settings.text_methods:
        of_method = made.filter(pl.col(AUGMENTED) == method.kind)
        first = len(texts) + len(further)
        further.extend(of_method["text"])
        rows = of_method["row"].to_numpy()
        many = np.bincount(rows, minlength=len(used))
        starts = np.cumsum(many) - many
        for copy in range(settings.copies):
            become = np.arange(len(texts), dtype=np.int32)
            changed = many > 0  # a text may have fewer distinct copies than were asked for
            pick = starts[changed] + copy % many[changed]
            become[used[changed]] = first + pick
            keys = keys_of(ids, settings.seed, method.kind, copy)
            some = np.flatnonzero(uniform(derived(keys, "made")) < method.probability)
            codes = np.where(history[some] == PAD, PAD, become[history[some]]).astype(np.int32)
            parts.append((some, codes, np.full(len(some), method.kind, dtype=object)))
    return tuple(further), parts


def _by_history(
    history: Sequence[Int32], ids: Int64, texts: ItemTexts, length: int, settings: Augmentation
) -> Part:
    """Copies whose items are others, or come in another order."""
    near = None
    if any(isinstance(method, Substitute | Insert) for method in settings.methods):
        flat = Flat.of(history)  # of training requests alone, so nothing later is known
        near = CoVisitation.fit(flat.row, flat.items, len(texts.codes))
    copies = augment_histories(history, ids, settings, near)
    return copies.row, history_codes(copies.history, texts, length), copies.augmented

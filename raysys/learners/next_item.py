"""What comes next, as a learner of the shop: any learner of sequences on the shop's histories.

A user's sequence is what examples carry of it: the history before the first request, then what
every further request was for. Candidates get what the model says of them after the history; it can
propose candidates, too. No feature is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raysys.catalogue import Catalogue
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.full_ranking import survey
from raysys.learners.next_item_settings import NextItemSettings, shop_negatives
from raysys.learners.protocol import Context, Float32, Learner, Model, Placeable, Report
from raysys.learners.sequence_protocol import (
    ItemFacts,
    SequenceContext,
    SequenceModel,
    Sequences,
    batches,
)
from raysys.learners.sequences import (
    load_sequence_model,
    make_sequence_learner,
    save_sequence_model,
)
from raysys.learners.shop_sequences import item_facts, shop_sequences, text_vectors
from raysys.learners.validation import NDCG

META = "next_item.json"
SEQUENCE_MODEL = "sequence_model"

Int32 = npt.NDArray[np.int32]


@runtime_checkable
class EncodesPrefixes(Protocol):
    """What a model of sequences offers when it scores in two steps, of which the first is dear."""

    def encode(self, prefixes: Sequences) -> Float32:
        """float32[len(prefixes), d]."""

    def score_encoded(self, prefixes: Sequences, hidden: Float32) -> Float32:
        """See `SequenceModel.score`."""


class NextItemModel(Model):
    """A model of sequences, and which item of the catalogue is which of its own.

    Args:
        model: of sequences.
        ids: item_id of each of its items, in order.
        catalogue: whose row numbers batches speak of.
        settings: as fitted.
    """

    def __init__(
        self,
        model: SequenceModel,
        ids: Sequence[str],
        catalogue: Catalogue,
        settings: NextItemSettings,
    ) -> None:
        self.model = model
        self.ids = list(ids)
        self.settings = settings
        known = {item_id: number for number, item_id in enumerate(self.ids)}
        self._own = np.array([known.get(item_id, -1) for item_id in catalogue.ids], dtype=np.int32)
        self._row = np.full(len(self.ids), -1, dtype=np.int32)
        there = np.flatnonzero(self._own >= 0)
        self._row[self._own[there]] = there
        self.augmented = dict(model.augmented)
        self.encodes_sessions = isinstance(model, EncodesPrefixes)

    def _prefixes(self, history: Sequence[Int32]) -> Sequences:
        """Histories, newest first in catalogue numbers, as prefixes in the model's."""
        lists = [self._own[np.asarray(held[: self.settings.history], np.int64)] for held in history]
        return Sequences.of([held[held >= 0][::-1].tolist() for held in lists])

    def in_own_numbers(self, sequences: Sequences) -> Sequences:
        """Sequences in catalogue numbers, in those of the model; what it does not know left out."""
        own = self._own[sequences.items]
        known = own >= 0
        kept = np.concatenate([[0], np.cumsum(known)])[sequences.offsets]
        return Sequences(own[known], kept, sequences.moment)

    def score(self, batch: Batch) -> Float32:
        """See `Model.score`; an item that the model does not know gets its lowest score."""
        scores = np.empty(len(batch), dtype=np.float32)
        for rows in batches(batch.n_requests, self.model.n_items):
            prefixes = self._prefixes([batch.history[i] for i in rows])
            dense = self._dense(prefixes, None if batch.encoded is None else batch.encoded[rows])
            a, b = batch.offsets[rows[0]], batch.offsets[rows[-1] + 1]
            own = self._own[batch.item[a:b]]
            of_row = batch.group[a:b] - rows[0]
            least = dense.min(axis=1)
            scores[a:b] = np.where(own >= 0, dense[of_row, np.maximum(own, 0)], least[of_row])
        return scores

    def place(self, device: str) -> None:
        """See `Placeable`; neighbours stay where they are."""
        if isinstance(self.model, Placeable):
            self.model.place(device)

    def encode_sessions(self, histories: Sequence[Int32]) -> Float32:
        """See `SessionEncoder`.

        Raises:
            ValueError: the model of sequences encodes nothing; see `encodes_sessions`.
        """
        if not isinstance(self.model, EncodesPrefixes):
            raise ValueError(f"a {type(self.model).__name__} encodes no sessions")
        return self.model.encode(self._prefixes(histories))

    def propose(
        self,
        history: Int32,
        k: int,
        *,
        allowed: npt.NDArray[np.bool_] | None = None,
        encoded: Float32 | None = None,
    ) -> tuple[Int32, Float32]:
        """See `SessionEncoder`; equal scores are ordered by the model's numbers of items."""
        prefixes = self._prefixes([history])
        dense = self._dense(prefixes, None if encoded is None else encoded[None])
        hidden = self._row < 0
        if allowed is not None:
            hidden |= ~allowed[np.maximum(self._row, 0)]
        dense[0, hidden] = -np.inf
        k = min(k, int(np.count_nonzero(~hidden)))
        items, scores, _, _ = survey(dense, np.full(1, -1, np.int32), k)
        return self._row[items[0]], scores[0]

    def _dense(self, prefixes: Sequences, encoded: Float32 | None) -> Float32:
        """Scores of all the model's items: float32[len(prefixes), n]."""
        if encoded is not None and isinstance(self.model, EncodesPrefixes):
            return self.model.score_encoded(prefixes, encoded)
        return self.model.score(prefixes)

    def save(self, folder: Path) -> None:
        """See `Model.save`."""
        save_sequence_model(self.settings.learner, self.model, folder / SEQUENCE_MODEL)
        content = {"settings": self.settings.model_dump(mode="json"), "items": self.ids}
        text = json.dumps(content, ensure_ascii=False) + "\n"
        (folder / META).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> NextItemModel:
        """See `Model.load`."""
        content = json.loads((folder / META).read_text(encoding="utf-8"))
        told = content["settings"]
        told["settings"].pop("time_gaps", None)  # earlier versions took it, and read no times
        settings = NextItemSettings(**told)
        model = load_sequence_model(folder / SEQUENCE_MODEL)
        return cls(model, content["items"], catalogue, settings)


class NextItem(Learner[NextItemSettings]):
    """Fits in this very process: sequences are small beside examples."""

    name: ClassVar[str] = "next_item"
    family: ClassVar[str] = "transformer"
    settings_model = NextItemSettings
    model_class: ClassVar[type[Model]] = NextItemModel
    steps: ClassVar[str] = "settings.epochs"

    def length(self) -> tuple[str, float] | None:
        """See `Learner.length`: epochs of a transformer; neighbours take none."""
        epochs = getattr(self.settings.of_sequences(), "epochs", None)
        return None if epochs is None else (self.steps, float(epochs))

    def fit(self, examples: Examples, context: Context) -> NextItemModel:
        """See `Learner.fit`."""
        return self.fit_local(examples, context)

    def fit_folds(self, folds: Sequence[Examples], context: Context) -> list[Model]:
        """See `Learner.fit_folds`: texts are encoded once for all."""
        facts = self._facts(context)
        kept = context.checkpoint
        return [
            self._fit(
                examples,
                replace(context, checkpoint=None if kept is None else kept.of(f"fold={number}")),
                None,
                facts,
            )
            for number, examples in enumerate(folds)
        ]

    def fit_local(
        self, examples: Examples, context: Context, report: Report | None = None
    ) -> NextItemModel:
        """See `Learner.fit_local`; with `report` the tail is left out and judged every epoch.

        A transformer leaves a checkpoint after every epoch that is due, and after its last.

        Raises:
            UserError: nothing retrieved was wanted, nothing follows anything, or `text_model` or
                `text` cannot be read.
        """
        return self._fit(examples, context, report, self._facts(context))

    def _facts(self, context: Context) -> ItemFacts:
        """What a transformer reads of the items beside their numbers."""
        facts = item_facts(context.catalogue, self.settings.attributes)
        if not self.settings.settings.get("texts"):
            return facts
        vectors = text_vectors(context.catalogue, self.settings, _device(context))
        return replace(facts, vectors=vectors)

    def _fit(
        self, examples: Examples, context: Context, report: Report | None, facts: ItemFacts
    ) -> NextItemModel:
        told, catalogue = self.settings, context.catalogue
        judged: Callable[[int, SequenceModel], None] | None = None
        if report is not None:
            examples, tail = examples.head_and_tail(told.last_fraction)
            judged = self._judging(tail.batch(), catalogue, report)
        train = shop_sequences(examples, told.history)
        settings = dict(told.settings)
        if told.learner == "sequence_transformer":
            settings.setdefault("max_length", told.history)
            settings.setdefault("negatives", shop_negatives(len(catalogue)))
            settings.setdefault("device", _device(context))
        learner = make_sequence_learner(told.learner, settings, where=f"{self.name}.settings")
        model = learner.fit(
            train,
            SequenceContext(
                *(len(catalogue), facts, context.seed),
                report=judged,
                checkpoint=context.checkpoint,
            ),
        )
        return NextItemModel(model, catalogue.ids.tolist(), catalogue, told)

    def _judging(
        self, tail: Batch, catalogue: Catalogue, report: Report
    ) -> Callable[[int, SequenceModel], None]:
        """What passes on NDCG@10 on the tail after every epoch."""
        judge, ids = NDCG(tail), catalogue.ids.tolist()

        def judged(epoch: int, model: SequenceModel) -> None:
            so_far = NextItemModel(model, ids, catalogue, self.settings)
            report(epoch, judge(so_far.score(tail)))

        return judged

    def resume(
        self, model: Model, examples: Examples, context: Context, steps: int, rate: float
    ) -> Model:
        """See `Learner.resume`: a transformer alone; no more than its `top_up` epochs."""
        from raysys.learners.sequence_transformer import (
            SequenceTransformer,
            SequenceTransformerModel,
        )

        assert isinstance(model, NextItemModel)
        before = model.model
        if not isinstance(before, SequenceTransformerModel):
            return super().resume(model, examples, context, steps, rate)
        train = model.in_own_numbers(shop_sequences(examples, model.settings.history))
        # where it was fitted is no reason to have a GPU now
        told = before.settings.model_copy(update={"device": _device(context)})
        places = max(1, int((train.tails(told.max_length + 1).sizes - 1).clip(min=0).sum()))
        tuned = SequenceTransformer(told).resume(
            before,
            train,
            SequenceContext(before.n_items, before.facts, context.seed),
            epochs=min(steps * told.batch_size / places, told.top_up or 1.0),
            learning_rate=told.learning_rate * rate,
        )
        return NextItemModel(tuned, model.ids, context.catalogue, model.settings)


def _device(context: Context) -> str:
    """Where a transformer learns: on a GPU if it was given one."""
    return "cuda" if context.resources.gpus_per_worker > 0 else "cpu"

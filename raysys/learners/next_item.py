"""What comes next, as a learner of the shop: any learner of sequences on the shop's histories.

A user's sequence is what examples carry of it: the history before the first request, then what
every further request was for. Candidates get what the model says of them after the history; it can
propose candidates, too. No feature is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, ValidationInfo, field_validator, model_validator

from raysys.catalogue import Catalogue
from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.full_ranking import survey
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
    sequence_learner_class,
)
from raysys.learners.validation import NDCG, no_positives
from raysys.text.items import NO_TEXT, item_texts

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


class NextItemSettings(Settings):
    """Which learner of sequences, and what it reads.

    Attributes:
        learner: its name.
        settings: its own settings.
        history: so many of the last items are read.
        attributes: columns of items that a transformer reads beside their numbers.
        text_model: makes the vectors of items' texts that a transformer with the setting
            `texts: true` reads: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging
            Face encoder. They are made once for each fit, and kept with the model.
        text: columns of items that are read then, in this order; empty: nearly all.
        max_tokens: read of each text.
        last_fraction: the latest part of the rows, left out where a search watches NDCG@10.
    """

    learner: Literal["sequence_transformer", "session_knn", "item_knn"] = "sequence_transformer"
    settings: dict[str, Any] = {}
    history: int = Field(50, ge=1)
    attributes: tuple[str, ...] = ("category", "subcategory", "brand")
    text_model: str = "all-MiniLM-L6-v2"
    text: tuple[str, ...] = ()
    max_tokens: int = Field(24, ge=4, le=512)
    last_fraction: float = Field(0.1, gt=0, lt=0.9)

    @field_validator("settings")
    @classmethod
    def _settings_are_the_learners(
        cls, given: dict[str, Any], info: ValidationInfo
    ) -> dict[str, Any]:
        """Held against the learner's own model, whose keys an error then names."""
        if "learner" in info.data:
            model = sequence_learner_class(info.data["learner"]).settings_model
            try:
                parse_settings(model, given, where="settings")
            except UserError as error:
                raise ValueError(error.what) from None
        return given

    @model_validator(mode="after")
    def _no_times(self) -> NextItemSettings:
        if self.settings.get("time_gaps"):
            raise ValueError(
                "settings.time_gaps: histories of examples and of requests hold items without "
                "their times; leave it out"
            )
        return self

    def of_sequences(self) -> Any:
        """The typed settings of the learner of sequences."""
        return sequence_learner_class(self.learner).settings_model(**self.settings)

    def within(self, name: str, items: int | None = None) -> Mapping[str, Any] | None:
        """See `HoldsSettings`; where the shop has other defaults than the learner, the shop's."""
        if name != "settings":
            return None
        own = dict(self.of_sequences())
        if self.learner == "sequence_transformer":
            shop = {"max_length": self.history, "negatives": None}
            if items is not None:
                shop["negatives"] = shop_negatives(items)
            shop |= {"texts": False, "time_gaps": False}
            own |= {each: value for each, value in shop.items() if each not in self.settings}
        return own


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
        facts = _facts(context.catalogue, self.settings.attributes)
        if not self.settings.settings.get("texts"):
            return facts
        vectors = _text_vectors(context.catalogue, self.settings, _device(context))
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


def shop_negatives(items: int) -> int:
    """Drawn for each step unless told, by the size of the catalogue; 0: all items compete."""
    return 0 if items <= 4000 else 2000


def _device(context: Context) -> str:
    """Where a transformer learns: on a GPU if it was given one."""
    return "cuda" if context.resources.gpus_per_worker > 0 else "cpu"


def shop_sequences(examples: Examples, history: int) -> Sequences:
    """A sequence a user, in catalogue numbers: the history before the first request, then what
    was wanted of the retrieved rows, request by request in time order.

    Raises:
        UserError: nothing retrieved was wanted.
    """
    wanted: dict[int, list[int]] = {}
    for path in examples.files("examples"):
        columns = ["request", "item", "label", "retrieved"]
        table = pq.read_table(path, columns=columns, partitioning=None)
        kept = table.filter(pc.and_(pc.greater(table["label"], 0), table["retrieved"]))
        for request, item in zip(
            kept["request"].to_pylist(), kept["item"].to_pylist(), strict=True
        ):
            wanted.setdefault(request, []).append(item)
    requests = examples.requests().select(["request", "user", "history"]).to_pylist()
    lists: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for place, row in enumerate(requests):
        user = row["user"] if row["user"] >= 0 else -1 - place  # strangers are not one another
        if user not in lists:
            lists[user] = list(reversed(row["history"][:history]))
        lists[user].extend(sorted(wanted.get(row["request"], ())))
        last[user] = place
    if not any(wanted.get(row["request"]) for row in requests):
        raise no_positives(examples)
    order = sorted(lists, key=lambda user: last[user])  # by their last request in time
    return Sequences.of([lists[user] for user in order], ordered=True)


def _facts(catalogue: Catalogue, columns: Sequence[str]) -> ItemFacts:
    """Categories of items as attributes; nothing where no column says anything."""
    parts, first = [], 0
    for column in columns:
        codes, labels = catalogue.codes(column)
        if labels:
            parts.append(np.where(codes >= 0, codes + first, -1))
            first += len(labels)
    if not parts:
        return ItemFacts()
    table = np.stack(parts, axis=1)
    sizes = (table >= 0).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return ItemFacts(table[table >= 0].astype(np.int32), offsets)


def _text_vectors(catalogue: Catalogue, told: NextItemSettings, device: str) -> Float32:
    """Unit vectors of items' texts, float32[n_items, d]; zeros of items without any text.

    Raises:
        UserError: `text_model` cannot be read, or `text` names a column that items do not have.
    """
    from raysys.text.encoder import Encoder

    texts = item_texts(catalogue, told.text)
    encoder = Encoder.open(told.text_model, told.max_tokens, None, where="next_item.text_model")
    encoder.place(device)
    vectors = encoder.encode([text if text != NO_TEXT else "" for text in texts.distinct])
    return vectors[texts.codes]

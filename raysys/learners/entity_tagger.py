"""Entities as token classification: a transformer, letters and known values, a CRF over both.

Brand, model and other attributes with exact character offsets. `word_tagger` is the same without
a transformer: it fits in seconds and serves in microseconds a word.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from raysys.cluster import device_here
from raysys.config import Settings
from raysys.errors import UserError
from raysys.learners.entity_objective import EntityObjective, NetworkPlan, load_network
from raysys.learners.span_decisions import (
    FoundSpan,
    Thresholds,
    predictions,
    span_log_loss,
)
from raysys.learners.text_protocol import SpanModel, TextContext, TextLearner, run_folder
from raysys.text.crf import Chain
from raysys.text.entity_network import EntityNetwork, Pooling, Window, chain_of, collate
from raysys.text.gazetteer import Gazetteer
from raysys.text.models import PACKAGED
from raysys.text.reader import Reader, labelled, require_spans, spans_in_units
from raysys.text.span_probabilities import FLOOR, Candidate, apart, candidates
from raysys.text.spans import Span, label_counts, spans_of
from raysys.text.tags import Lost, Scheme, Tags
from raysys.text.training import Fitted, TrainingSettings, train
from raysys.text.units import Splitter, Units

FILE = "tagger.json"
Chains = list[tuple[list[Window], Chain]]
"""Windows in batches, and the potentials of each batch."""
UNITS_PER_BATCH = 2048
LEAST_JUDGED = 0.1
"""The temperature is chosen by the spans that are at least so likely without one."""
TEMPERATURES = tuple(round(float(each), 3) for each in np.geomspace(0.5, 4.0, 13))


class WordTaggerSettings(Settings):
    """What is read of a unit (a word, a number, a sign), and how tags are joined.

    Attributes:
        scheme: tags of a label: B I, or B I E S.
        crf: learn which tag follows which; else only what cannot be is excluded.
        surface: width of the vectors of what units look like.
        gazetteer: look for values of the training texts.
        window: units read at once; longer texts are read in windows.
        overlap: units that neighbouring windows share.
        longest: units of the longest span.
        dropout: before the head and of the units' vectors.
        training: see `TrainingSettings`.
    """

    scheme: Scheme = "bio"
    crf: bool = True
    surface: int = Field(64, ge=0, le=1024)
    gazetteer: bool = True
    window: int = Field(96, ge=8, le=512)
    overlap: int = Field(24, ge=0, le=256)
    longest: int = Field(16, ge=1, le=64)
    dropout: float = Field(0.3, ge=0, lt=1)
    training: TrainingSettings = TrainingSettings(
        epochs=6, learning_rate=5e-3, batch_size=16, weight_decay=0.01
    )


class EntityTaggerSettings(WordTaggerSettings):
    """As `WordTaggerSettings`, and the transformer.

    Attributes:
        model: the packaged one, a folder, or an id of the Hugging Face hub.
        pooling: a unit's vector is that of its first token, or the mean of all.
    """

    model: str = PACKAGED
    pooling: Pooling = "mean"
    training: TrainingSettings = TrainingSettings(
        epochs=5, learning_rate=2e-4, head_learning_rate=5e-3, batch_size=16, trainable_layers=4
    )


class EntityModel(SpanModel):
    """A fitted tagger.

    Args:
        reader: what it reads of a text.
        network: potentials of tags.
        tags: their meaning.
        longest: units of the longest span.
        temperature: by which potentials are divided.
        thresholds: of the probability, by label.
    """

    fitted: Fitted | None = None
    """How training went; None after `load`."""

    def __init__(
        self,
        reader: Reader,
        network: EntityNetwork,
        tags: Tags,
        longest: int,
        temperature: float = 1.0,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.reader = reader
        self.network = network.eval().to(device_here())
        self.tags = tags
        self.longest = longest
        self.temperature = temperature
        self.thresholds = thresholds or Thresholds(0.5, {})

    @property
    def labels(self) -> tuple[str, ...]:
        """See `SpanModel`."""
        return self.tags.labels

    def predict(self, table: pa.Table, labels: Collection[str] | None = None) -> pa.Table:
        """See `SpanModel.predict`; the probability is that of exactly this span.

        It is the same whatever is asked for: a chain without the other labels would read a colour
        as a brand, for want of anything better.
        """
        texts = table["text"].to_pylist()
        found = self.candidates(texts, labels)
        return predictions(texts, [self.thresholds.said(each) for each in found])

    def candidates(
        self, texts: Sequence[str], labels: Collection[str] | None = None
    ) -> list[list[FoundSpan]]:
        """The likeliest spans of each text, none overlapping another, however unlikely.

        Args:
            texts: n of them.
            labels: of the spans; None: all.
        """
        units = [self.reader.splitter(text) for text in texts]
        return self._found(units, self._chains(units), self.temperature, labels)

    @torch.inference_mode()
    def _chains(self, texts: Sequence[Units]) -> Chains:
        """Windows in batches of like length, and their potentials."""
        device = next(self.network.parameters()).device
        windows = self.reader.windows(texts)
        order = sorted(range(len(windows)), key=lambda at: (len(windows[at]), at))
        done: Chains = []
        at = 0
        while at < len(order):
            size = max(1, UNITS_PER_BATCH // len(windows[order[min(at + 63, len(order) - 1)]]))
            batch = [windows[each] for each in order[at : at + min(size, 64)]]
            tensors = {k: v.to(device) for k, v in collate(batch, self.reader.pad).items()}
            done.append((batch, chain_of(self.network, tensors)))
            at += len(batch)
        return done

    def _candidates(
        self, texts: Sequence[Units], chains: Chains, temperature: float
    ) -> list[list[Candidate]]:
        """Of each text all spans that are likely enough to be looked at, by number of its units."""
        by_text: list[list[Candidate]] = [[] for _ in texts]
        for batch, chain in chains:
            found = candidates(chain.cooled(temperature), self.tags, self.longest)
            for window, spans in zip(batch, found, strict=True):
                first, last = self.reader.owned(window, len(texts[window.text]))
                by_text[window.text] += [
                    Candidate(at, each.last + window.first, each.label, each.probability)
                    for each in spans
                    if first <= (at := each.first + window.first) < last
                ]
        return by_text

    def _found(
        self, texts: Sequence[Units], chains: Chains, temperature: float,
        labels: Collection[str] | None = None,
    ) -> list[list[FoundSpan]]:  # fmt: skip
        every = self._candidates(texts, chains, temperature)
        if labels is not None:
            asked = {at for at, label in enumerate(self.tags.labels) if label in labels}
            every = [[each for each in spans if each.label in asked] for spans in every]
        return [
            [self._said(units, each) for each in apart(spans)]
            for units, spans in zip(texts, every, strict=True)
        ]

    def _said(self, units: Units, c: Candidate) -> FoundSpan:
        return FoundSpan(self.tags.span(units, c.first, c.last, c.label), c.probability)

    def _of(
        self, wanted: Sequence[set[Span]], texts: Sequence[Units], chains: Chains,
        temperature: float,
    ) -> list[list[FoundSpan]]:  # fmt: skip
        """The probabilities of given spans at a temperature."""
        every = self._candidates(texts, chains, temperature)
        found = []
        for units, spans, judged in zip(texts, every, wanted, strict=True):
            known = {each.span: each for each in (self._said(units, c) for c in spans)}
            found.append([known.get(span, FoundSpan(span, FLOOR)) for span in sorted(judged)])
        return found

    def calibrate(self, validation: pa.Table) -> None:
        """Choose the temperature by the log loss of spans, then the thresholds by their F1."""
        truth = [set(spans) for spans in spans_of(validation)]
        units = [self.reader.splitter(text) for text in validation["text"].to_pylist()]
        if not any(truth):
            return
        chains = self._chains(units)
        # one set of spans for all temperatures: a hotter chain has more and unlikelier ones, which
        # cost little each, so that a mean over its own would always favour heat
        judged = [
            {each.span for each in spans if each.probability >= LEAST_JUDGED}
            for spans in self._found(units, chains, 1.0)
        ]
        losses = {
            each: span_log_loss(truth, self._of(judged, units, chains, each))
            for each in TEMPERATURES
        }
        known = [each for each, loss in losses.items() if not np.isnan(loss)]
        if known:
            self.temperature = min(known, key=lambda each: losses[each])
            found = self._found(units, chains, self.temperature)
            self.thresholds = Thresholds.choose(truth, found)

    def save(self, folder: Path) -> None:
        """See `TextModel.save`."""
        plan = NetworkPlan.of(self.network, self.tags)
        plan.save(self.network, self.reader, folder)
        content = {
            "longest": self.longest,
            "temperature": self.temperature,
            "thresholds": self.thresholds.to_json(),
        }
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> EntityModel:
        """See `TextModel.load`."""
        network, reader, tags = load_network(folder)
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        thresholds = Thresholds.from_json(content["thresholds"])
        return cls(reader, network, tags, content["longest"], content["temperature"], thresholds)


S = TypeVar("S", bound=WordTaggerSettings)


class _Tagger(TextLearner[S], Generic[S]):
    """What both taggers share."""

    tasks = ("entities",)
    model_class = EntityModel
    lost: Lost
    """What tags could not say of the training spans; known after `fit`."""

    def length(self) -> tuple[str, float]:
        """See `TextLearner.length`."""
        return self.settings.training.length()

    def fit(self, train_table: pa.Table, validation: pa.Table, context: TextContext) -> EntityModel:
        """See `TextLearner.fit`."""
        settings, where = self.settings, f"learners.{self.name}"
        if settings.overlap >= settings.window:
            raise UserError(
                f"windows of {settings.window} units cannot share {settings.overlap}",
                where=f"{where}.overlap",
                mend="take less than the window, about a quarter of it",
            )
        texts = labelled(train_table)
        require_spans(texts, where=where)
        counts = label_counts([spans for _, spans in texts])
        tags = Tags(tuple(sorted(counts)), settings.scheme)
        splitter = Splitter.of(texts)
        units = [splitter(text) for text, _ in texts]
        own = [spans_in_units(u, spans) for u, (_, spans) in zip(units, texts, strict=True)]
        known = Gazetteer.fit(zip(units, own, strict=True)) if settings.gazetteer else None
        plan = self._plan(tags)
        reader = Reader(
            splitter, known, plan.tokenizer(), plan.pooling, settings.window, settings.overlap,
            plan.most_tokens(),
        )  # fmt: skip
        self.lost = Lost()
        encoded = [
            tags.encode(u, spans, counts, self.lost)
            for u, (_, spans) in zip(units, texts, strict=True)
        ]
        objective = EntityObjective(
            plan, reader, reader.windows(units, own), encoded, labelled(validation),
            settings.longest,
        )  # fmt: skip
        folder = run_folder(self.name, self.settings, context)
        fitted = train(
            *(objective, settings.training, folder),
            seed=context.seed,
            resources=context.resources,
            report=context.report,
        )
        network, reader, tags = load_network(folder)
        shutil.rmtree(folder, ignore_errors=True)
        model = EntityModel(reader, network, tags, settings.longest)
        model.fitted = fitted
        model.calibrate(validation)
        return model

    @abstractmethod
    def _plan(self, tags: Tags) -> NetworkPlan:
        """The network that the settings ask for."""


class WordTagger(_Tagger[WordTaggerSettings]):
    """A small convolutional tagger over what words look like; no transformer."""

    name = "word_tagger"
    family: ClassVar[str] = "baseline"
    settings_model = WordTaggerSettings

    def _plan(self, tags: Tags) -> NetworkPlan:
        s = self.settings
        if not s.surface:
            raise UserError(
                "a tagger without a transformer reads nothing but the surface of words",
                where=f"learners.{self.name}.surface",
                mend="give it a width, 64 say",
            )
        return NetworkPlan(tags, s.crf, s.surface, s.dropout, where=f"learners.{self.name}")


class EntityTagger(_Tagger[EntityTaggerSettings]):
    """A transformer with a head for tags."""

    name = "entity_tagger"
    family: ClassVar[str] = "transformer"
    settings_model = EntityTaggerSettings

    def _plan(self, tags: Tags) -> NetworkPlan:
        s = self.settings
        return NetworkPlan(
            tags, s.crf, s.surface, s.dropout, s.model, s.pooling,
            where=f"learners.{self.name}.model",
        )  # fmt: skip

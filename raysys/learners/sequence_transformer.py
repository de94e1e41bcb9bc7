"""The sequence transformer: what comes next, learned from the order of items.

One causal pass over a sequence teaches all its prefixes; or places are hidden and guessed from
both sides. Items are numbers with vectors, joined, where they are known, by attributes and texts.
Scoring is one product with the vectors of all items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from safetensors.torch import load_file, save_file

from raysys.cluster import device_here
from raysys.config import Settings
from raysys.errors import UserError
from raysys.learners.sequence_copies import with_copies
from raysys.learners.sequence_encoder import Encoder, Padded, Shape, padded
from raysys.learners.sequence_popularity import ageing, popularity
from raysys.learners.sequence_protocol import (
    Float32,
    ItemFacts,
    SequenceContext,
    SequenceLearner,
    SequenceModel,
    Sequences,
)
from raysys.learners.sequence_softmax import seen_before
from raysys.learners.sequence_training import Schedule, Trainer, spectral_start
from raysys.text.augment.settings import Augmentation

META = "sequence_transformer.json"
FILE = "sequence_transformer.safetensors"


class SequenceTransformerSettings(Settings):
    """The network, and how it is trained.

    Attributes:
        objective: `causal` looks back and learns all prefixes at once; `masked` hides places and
            looks both ways.
        width: of vectors.
        layers: of the transformer.
        heads: of attention; they divide the width.
        max_length: items of a sequence that are read, the last ones.
        whole: of longer sequences all is learned, in pieces of that length; otherwise the end.
        dropout: inside the layers.
        item_dropout: on what goes in.
        cosine: vectors have unit length, see `Encoder`.
        temperature: of the softmax; without `cosine` 1 is right.
        label_smoothing: share of the target that is spread over all items.
        negatives: drawn for each step beside the batch's own targets; 0: all items, the full
            softmax.
        negative_power: of the frequency by which they are drawn.
        epochs: passes over the sequences; masked ones go on until as many places were asked for as
            in so many passes that ask for each.
        batch_size: places a step.
        learning_rate: at its highest.
        warm_up: share of the steps in which it rises.
        weight_decay: of the weights.
        half_life: of sequences, see `ageing`: older ones are drawn less often; 0: all alike.
        mask_share: of places hidden, if masked.
        start: vectors of items begin as singular vectors of what stands near what, or at random.
        repeats: what was seen already gets a logit of its own, by how long ago.
        attributes: of items are read, where known.
        texts: vectors of texts are read, where known.
        time_gaps: times between items are read, where known.
        augmentation: changed copies of the sequences that are learned, by methods for histories;
            with `weights: shared` an epoch takes as long as without.
        top_up: epochs when a fitted model learns newer sequences too.
        device: where it is trained; `auto`: a GPU where there is one.
    """

    objective: Literal["causal", "masked"] = "causal"
    width: int = Field(64, ge=4, le=2048)
    layers: int = Field(2, ge=1, le=24)
    heads: int = Field(2, ge=1)
    max_length: int = Field(50, ge=1, le=1000)
    whole: bool = False
    dropout: float = Field(0.2, ge=0, lt=1)
    item_dropout: float = Field(0.2, ge=0, lt=1)
    cosine: bool = True
    temperature: float = Field(0.07, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    negatives: int = Field(0, ge=0)
    negative_power: float = Field(0.5, ge=0, le=1)
    epochs: float = Field(10, gt=0)
    batch_size: int = Field(1024, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warm_up: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    half_life: float = Field(0.0, ge=0)
    mask_share: float = Field(0.3, gt=0, lt=1)
    start: Literal["spectral", "random"] = "spectral"
    repeats: bool = True
    attributes: bool = True
    texts: bool = True
    time_gaps: bool = True
    augmentation: Augmentation = Augmentation()
    top_up: float = Field(1.0, ge=0)
    device: str = "auto"

    @model_validator(mode="after")
    def _heads_divide(self) -> SequenceTransformerSettings:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}")
        return self

    @field_validator("augmentation")
    @classmethod
    def _no_texts(cls, given: Augmentation) -> Augmentation:
        if given.text_methods:
            kinds = ", ".join(method.kind for method in given.text_methods)
            raise ValueError(f"methods: {kinds}: a sequence has items and no text to change")
        return given

    @property
    def longest(self) -> int:
        """Items of a piece: an input and, if causal, its target."""
        return self.max_length + (self.objective == "causal")


class SequenceTransformerModel(SequenceModel):
    """A trained encoder and the vectors of all items.

    Args:
        encoder: on the CPU.
        popular: float32[n_items], what an empty prefix gets.
        settings: as fitted.
        augmented: copies of sequences that it learned from, by method.
    """

    scale: ClassVar[Literal["log", "share"]] = "log"

    def __init__(
        self,
        encoder: Encoder,
        popular: Float32,
        settings: SequenceTransformerSettings,
        augmented: Mapping[str, int] | None = None,
    ) -> None:
        self.augmented = dict(augmented or {})
        self.encoder = encoder.eval()
        self.popular = popular
        self.settings = settings
        self.n_items = encoder.shape.n_items
        with torch.inference_mode():
            rows = [encoder.item_vectors(), encoder.mask_vector()]
            self._rows = torch.cat(rows)
        self._returns = self.encoder  # the part that scoring reads; on the CPU wherever the rest is
        self.item_vectors: Float32 = self._rows[:-1].numpy()

    @property
    def facts(self) -> ItemFacts:
        """What it was told of the items."""
        return _facts(self.encoder.state_dict())

    def encode(self, prefixes: Sequences) -> Float32:
        """Where each prefix points to: float32[len(prefixes), width]."""
        shape = self.encoder.shape
        masked = shape.both_ways
        given = padded(prefixes.tails(shape.max_length), time_gaps=shape.time_gaps)
        sizes = torch.from_numpy(np.minimum(prefixes.sizes, shape.max_length))
        if masked:
            given = _with_mask(given, sizes, shape.n_items)
        at = sizes if masked else (sizes - 1).clamp(min=0)
        device = self._rows.device
        given = Padded(
            given.items.to(device),
            given.there.to(device),
            None if given.gaps is None else given.gaps.to(device),
        )
        with torch.inference_mode():
            hidden = self.encoder(given, self._rows, given.items).cpu()
            found: Float32 = hidden[torch.arange(len(at)), at].numpy()
        return found

    def place(self, device: str) -> None:
        """Encode on a device, such as `cuda`, from now on; scoring stays on the CPU."""
        with torch.inference_mode():
            self._returns = deepcopy(self.encoder)
            self.encoder.to(device)
            self._rows = self._rows.to(device)

    def score(self, prefixes: Sequences) -> Float32:
        """See `SequenceModel.score`; the logits of the softmax."""
        return self.score_encoded(prefixes, self.encode(prefixes))

    def score_encoded(self, prefixes: Sequences, hidden: Float32) -> Float32:
        """The same of prefixes that are encoded: float32[len(prefixes), n_items].

        Args:
            prefixes: as given to `encode`.
            hidden: what it said.
        """
        scores = np.dot(hidden * np.float32(1 / self.settings.temperature), self.item_vectors.T)
        tails = prefixes.tails(self.encoder.shape.max_length)
        row, item, back = seen_before(tails.items, tails.offsets, False)
        with torch.inference_mode():
            again = self._returns.again(torch.from_numpy(hidden[row]), torch.from_numpy(back))
        scores[row, item] += again.numpy()
        scores[prefixes.sizes == 0] = self.popular
        return scores

    def save(self, folder: Path) -> None:
        """See `SequenceModel.save`."""
        parts = {name: part.contiguous() for name, part in self.encoder.state_dict().items()}
        save_file({**parts, "popular": torch.from_numpy(self.popular)}, folder / FILE)
        content = {
            "shape": asdict(self.encoder.shape),
            "settings": self.settings.model_dump(mode="json"),
            "augmented": self.augmented,
        }
        (folder / META).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SequenceTransformerModel:
        """See `SequenceModel.load`."""
        content = json.loads((folder / META).read_text(encoding="utf-8"))
        parts = load_file(folder / FILE)
        popular = parts.pop("popular").numpy()
        encoder = Encoder(Shape(**content["shape"]), _facts(parts))
        encoder.load_state_dict(parts)
        settings = SequenceTransformerSettings(**content["settings"])
        return cls(encoder, popular, settings, content.get("augmented"))


def _facts(parts: Mapping[str, torch.Tensor]) -> ItemFacts:
    """What an encoder's state says of the items."""
    names = ("attribute", "attribute_offsets", "vectors")
    return ItemFacts(*(parts[name].cpu().numpy() if name in parts else None for name in names))


def _with_mask(given: Padded, sizes: torch.Tensor, mask: int) -> Padded:
    """The mask behind the last item of each sequence."""
    b, n = given.items.shape
    items = torch.zeros(b, n + 1, dtype=torch.int64)
    there = torch.zeros(b, n + 1, dtype=torch.bool)
    items[:, :n], there[:, :n] = given.items, given.there
    rows = torch.arange(b)
    items[rows, sizes], there[rows, sizes] = mask, True
    gaps = None
    if given.gaps is not None:
        gaps = torch.zeros(b, n + 1, dtype=torch.int64)
        gaps[:, :n] = given.gaps
    return Padded(items, there, gaps)


class SequenceTransformer(SequenceLearner[SequenceTransformerSettings]):
    """Trains in this very process; a deadline ends it in good order."""

    name: ClassVar[str] = "sequence_transformer"
    family = "transformer"
    settings_model = SequenceTransformerSettings
    model_class = SequenceTransformerModel

    def fit(self, train: Sequences, context: SequenceContext) -> SequenceTransformerModel:
        """See `SequenceLearner.fit`."""
        told = self.settings
        pieces = self._pieces(train)
        torch.manual_seed(context.seed)
        encoder = Encoder(self._shape(train, context), context.facts)
        if told.start == "spectral":
            weight = ageing(train, told.half_life)
            start = spectral_start(train, context.n_items, told.width, context.seed, weight)
            with torch.no_grad():
                encoder.table[: context.n_items] = torch.from_numpy(start)
        return self._trained(encoder, pieces, train, self._schedule(told.epochs), context)

    def refit(
        self, model: SequenceModel, train: Sequences, context: SequenceContext
    ) -> SequenceTransformerModel:
        """See `SequenceLearner.refit`: `top_up` epochs at a third of the rate."""
        told = self.settings
        rate = told.learning_rate / 3
        return self.resume(model, train, context, epochs=told.top_up, learning_rate=rate)

    def resume(
        self,
        model: SequenceModel,
        train: Sequences,
        context: SequenceContext,
        *,
        epochs: float,
        learning_rate: float | None = None,
    ) -> SequenceTransformerModel:
        """Train a model further; it is not changed itself.

        Raises:
            ValueError: it is no sequence transformer.
        """
        if not isinstance(model, SequenceTransformerModel):
            raise ValueError(f"no sequence transformer: {type(model).__name__}")
        if not epochs:
            return model
        encoder = Encoder(model.encoder.shape, context.facts)
        encoder.load_state_dict(model.encoder.state_dict())
        schedule = self._schedule(epochs, learning_rate)
        return self._trained(encoder, self._pieces(train), train, schedule, context)

    def _trained(
        self,
        encoder: Encoder,
        pieces: Sequences,
        train: Sequences,
        schedule: Schedule,
        context: SequenceContext,
    ) -> SequenceTransformerModel:
        popular = popularity(train, context.n_items)
        settings = self.settings
        if settings.augmentation and encoder.shape.time_gaps:
            raise UserError(
                "changed copies of sequences have no times between their items",
                where=f"{self.name}.augmentation",
                mend="set time_gaps: false, or leave augmentation out",
            )
        learned, share, made = with_copies(
            pieces, settings.augmentation, context.n_items, settings.longest
        )

        def model() -> SequenceTransformerModel:
            """What is trained so far, a copy: training goes on."""
            return SequenceTransformerModel(deepcopy(encoder).to("cpu"), popular, settings, made)

        def told(epoch: int) -> None:
            if context.report is not None:
                context.report(epoch, model())

        Trainer(encoder, learned, schedule, context, self._device(), share).run(told)
        return model()

    def _device(self) -> str:
        return device_here() if self.settings.device == "auto" else self.settings.device

    def _pieces(self, train: Sequences) -> Sequences:
        """Pieces of `max_length` + 1 items (an input and its target) of sequences of two or more.

        The last of each; with `whole` those before it as well.
        """
        told = self.settings
        longest = told.longest
        tails = train.pieces(longest) if told.whole and longest > 1 else train.tails(longest)
        kept = np.flatnonzero(tails.sizes > 1)
        if not len(kept):
            raise UserError(
                "no sequence has two items: nothing follows anything",
                mend="give sessions or histories of two items and more",
            )
        return tails.take(kept)

    def _shape(self, train: Sequences, context: SequenceContext) -> Shape:
        told, facts = self.settings, context.facts
        vectors = facts.vectors if told.texts else None
        return Shape(
            n_items=context.n_items,
            width=told.width,
            layers=told.layers,
            heads=told.heads,
            max_length=told.max_length,
            dropout=told.dropout,
            item_dropout=told.item_dropout,
            cosine=told.cosine,
            both_ways=told.objective == "masked",
            n_attributes=facts.n_attributes if told.attributes else 0,
            text_width=0 if vectors is None else vectors.shape[1],
            time_gaps=told.time_gaps and train.times is not None,
            repeats=told.repeats,
        )

    def _schedule(self, epochs: float, learning_rate: float | None = None) -> Schedule:
        told = self.settings
        return Schedule(
            epochs=epochs,
            batch_size=told.batch_size,
            learning_rate=learning_rate or told.learning_rate,
            warm_up=told.warm_up,
            weight_decay=told.weight_decay,
            temperature=told.temperature,
            smoothing=told.label_smoothing,
            negatives=told.negatives,
            negative_power=told.negative_power,
            half_life=told.half_life,
            masked=told.mask_share if told.objective == "masked" else 0.0,
        )

"""The contract of every learner: fit on examples, score a batch, live in a folder.

A transformer and a tree are the same to folds, stacking, tuning, evaluation and serving. A new
learner is one file, one line in `learners/__init__.py`, and one line of YAML; the inherited test
suite in `tests/learners/` then covers it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from raysys.catalogue import Catalogue
from raysys.cluster import Resources
from raysys.config import Settings
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.storage import CheckpointFolder

__all__ = [
    "Compressible",
    "Context",
    "Explainable",
    "Float32",
    "HoldsSettings",
    "Learner",
    "Model",
    "Placeable",
    "Report",
    "Reranker",
    "Resources",
    "SessionEncoder",
    "TextEncoder",
]

Float32 = npt.NDArray[np.float32]

Report = Callable[[int, float], None]
"""Told (step, NDCG@10 on the tail of the fitted rows) while a fit goes on; may raise to end it."""


@dataclass(frozen=True)
class Context:
    """What a fit knows beside its examples.

    Attributes:
        catalogue: every item; its row number is `Batch.item`.
        scratch: a folder that all workers see (Ray Train's storage_path), for checkpoints.
        seed: of everything random in the fit.
        resources: workers, CPUs and GPUs.
        checkpoint: where a fit leaves its state as it goes, and takes it up from; of one learner,
            settings, data and seed alone, `fit_folds` giving each fold its own. None: it starts
            anew. Learners that do not train step by step pay no heed to it, nor do trees in `fit`.
    """

    catalogue: Catalogue
    scratch: Path
    seed: int = 0
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointFolder | None = None


class Model(ABC):
    """A fitted learner: pure, thread-safe, no Ray inside."""

    requires: tuple[str, ...] = ()
    """Names of the feature columns it reads from `Batch`; empty if none."""
    augmented: Mapping[str, int] = {}
    """Changed copies of training rows it was fitted on, by method; empty if it makes none."""

    @abstractmethod
    def score(self, batch: Batch) -> Float32:
        """Base scores, float32[n], finite, higher is better; comparable within a request only."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing empty folder: safetensors, trees as JSON/UBJ, JSON. No pickle."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> Model:
        """Read what `save` wrote; scores are the same to the last bit."""


@runtime_checkable
class TextEncoder(Protocol):
    """What a model offers beside scores when it can place texts and items in one vector space.

    Attributes:
        item_vectors: float32[n_items, d], unit rows, in catalogue order.
    """

    item_vectors: Float32

    def encode(self, texts: Sequence[str]) -> Float32:
        """Vectors of free texts: float32[len(texts), d], unit rows."""


@runtime_checkable
class SessionEncoder(Protocol):
    """What a model offers beside scores when it can say what comes next after a history.

    Histories are rows of the catalogue, newest first, as in `Batch.history`. Encoding one is what
    takes long; it may be done elsewhere, once for candidates and scores (`Batch.encoded`).

    Attributes:
        encodes_sessions: whether encoding takes a network, so that doing it elsewhere pays.
    """

    encodes_sessions: bool

    def encode_sessions(self, histories: Sequence[npt.NDArray[np.int32]]) -> Float32:
        """What the model makes of histories: float32[len(histories), d]."""

    def propose(
        self,
        history: npt.NDArray[np.int32],
        k: int,
        *,
        allowed: npt.NDArray[np.bool_] | None = None,
        encoded: Float32 | None = None,
    ) -> tuple[npt.NDArray[np.int32], Float32]:
        """The k best items of the catalogue after a history, and their scores, best first.

        Args:
            history: int32[m].
            k: at most; fewer where fewer are known.
            allowed: bool[n_items], the only items that may be proposed; None: all.
            encoded: float32[d], what `encode_sessions` made of it; None: made now.
        """


@runtime_checkable
class Reranker(Protocol):
    """What a model offers that reads a query and an item together: dear, so for a few items."""

    def pairs_of(self, asked: Sequence[tuple[str, npt.NDArray[np.int32]]]) -> list[Float32]:
        """How well items fit their query, float32[n] of each: several queries read as one batch.

        Args:
            asked: a query as typed, and rows of the catalogue.
        """


@runtime_checkable
class Placeable(Protocol):
    """What a model offers whose network can run elsewhere than on the CPU."""

    def place(self, device: str) -> None:
        """Move the network to a device as PyTorch names it, such as `cuda`, to stay there."""


@runtime_checkable
class Explainable(Protocol):
    """What a model offers when it can say what each input added to a score."""

    def contributions(self, batch: Batch) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
        """Names of what was read, and what each added: float64[n, names].

        A row sums to its score less a number that all rows share.
        """


@runtime_checkable
class Compressible(Protocol):
    """What a model offers when its vectors of items can be kept in fewer bytes, or made anew.

    Attributes:
        vector_bytes: that its vectors take.
    """

    vector_bytes: int

    def reencoded(self, items: npt.NDArray[np.int32]) -> Model:
        """This model, with the vectors of some items as its encoder says them now."""

    def quantised(self, kind: str, *, seed: int = 0) -> Model:
        """This model, with vectors kept as one of `text.compression.vectors.KINDS`."""


@runtime_checkable
class HoldsSettings(Protocol):
    """What settings offer that hold, as they were written, those of a learner within."""

    def within(self, name: str, items: int | None = None) -> Mapping[str, Any] | None:
        """All of the learner's own settings, those that were not given included.

        Args:
            name: of the setting that holds them; None is returned for one that holds none.
            items: how many the catalogue has, by which some settings go; None: unknown.

        Returns:
            By name; None for those that only the data can tell.
        """


S = TypeVar("S", bound=Settings)


class Learner(ABC, Generic[S]):
    """Anything that fits on examples and scores candidates.

    Attributes:
        name: as YAML and reports know it.
        family: `tree`, `transformer` or `baseline`; fallbacks of the ensemble go by it.
        settings_model: its typed settings, as found under `settings` in YAML.
        model_class: what `fit` returns; loads it from a bundle.
        steps: the setting that says how many steps a fit takes, a dot within settings; empty if it
            has none. See `length`, too.
        changeable: settings that may change between two steps of a fit: what population-based
            training can search.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    settings_model: ClassVar[type[Settings]]
    model_class: ClassVar[type[Model]]
    steps: ClassVar[str] = ""
    changeable: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def reads(self, names: Sequence[str]) -> tuple[str, ...]:
        """Which of a plan's features a model will score by; empty: only a fit tells.

        Raises:
            UserError: settings name features that the plan lacks.
        """
        return ()

    def length(self) -> tuple[str, float] | None:
        """The setting that says how long a fit by these settings takes, and what it says.

        A whole number counts steps, any other may be broken: 0.5 epochs, say. None: there is
        nothing to take less of.
        """
        return (self.steps, getattr(self.settings, self.steps)) if self.steps else None

    @abstractmethod
    def fit(self, examples: Examples, context: Context) -> Model:
        """Fit on the retrieved rows of `examples`.

        Raises:
            UserError: settings or data that cannot work (no positive label, say).
        """

    def fit_folds(self, folds: Sequence[Examples], context: Context) -> list[Model]:
        """One model a fold. Learners with a costly start override it to start once for all."""
        models = []
        for number, examples in enumerate(folds):
            own = context.checkpoint and context.checkpoint.of(f"fold={number}")
            models.append(self.fit(examples, replace(context, checkpoint=own)))
        return models

    def fit_local(
        self, examples: Examples, context: Context, report: Report | None = None
    ) -> Model:
        """Fit in this very process, without a Ray Train run: what a tuning trial calls.

        A Ray Train run costs about 20 s to start, a light fit two. Learners that train step by
        step override it, call `report` as they go, and take up what lies in `context.checkpoint`;
        the others just fit.
        """
        return self.fit(examples, context)

    def resume(
        self, model: Model, examples: Examples, context: Context, steps: int, rate: float
    ) -> Model:
        """Go on from a fitted model with newer examples, in this very process.

        Args:
            model: of this learner and these settings; it is not changed itself.
            examples: newer than what it was fitted on.
            context: as for a fit.
            steps: at most so many (trees, or steps of an optimizer).
            rate: times the learning rate of the settings.

        Raises:
            UserError: this learner cannot, or the examples teach nothing.
        """
        raise UserError(
            f"{self.name} cannot go on from a fitted model",
            mend="leave it out: it keeps its weights until the next `raysys train`",
        )

"""The contract of learners that read texts: fit on labelled texts, predict, live in a folder.

Four tasks, each with a table for what goes in (`schema.LABELLED_TEXTS`, for relevance
`schema.LABELLED_PAIRS`) and one for what comes out (`PREDICTIONS`). A baseline on word counts and
a transformer are the same to the stage that compares them, to calibration, scoring and serving.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import pyarrow as pa

from raysys import schema
from raysys.cluster import Resources
from raysys.config import Settings
from raysys.errors import UserError

SHOWN = 20  # labels in one message

Task = Literal["classify", "entities", "sentiment", "relevance"]

CHOICE = pa.struct([pa.field("label", pa.string()), pa.field("probability", pa.float32())])
FOUND_SPAN = pa.struct(
    [*schema.SPAN, pa.field("text", pa.string()), pa.field("probability", pa.float32())]
)
PREDICTIONS: dict[str, pa.Schema] = {
    "classify": pa.schema(
        [
            pa.field("label", pa.string()),  # null where no label reaches its threshold
            pa.field("probability", pa.float32()),
            pa.field("choices", pa.list_(CHOICE)),  # the likeliest labels, best first
        ]
    ),
    "entities": pa.schema([pa.field("spans", pa.list_(FOUND_SPAN))]),
    "sentiment": pa.schema(
        [
            pa.field("label", pa.string()),
            pa.field("probability", pa.float32()),
            pa.field("choices", pa.list_(CHOICE)),
            pa.field("rating", pa.float32()),  # null where nothing was learned of ratings
        ]
    ),
    "relevance": pa.schema([pa.field("grade", pa.float32())]),  # in the units of the judgements
}
"""What `TextModel.predict` returns, by task: one row a row of its input, in its order."""
JUDGED_RELEVANCE = pa.schema(
    [
        *PREDICTIONS["relevance"],
        pa.field("probability", pa.float32()),  # that the grade is at or above the cut
        pa.field("relevant", pa.bool_()),  # whether that is enough
    ]
)
"""What a relevance model returns that was calibrated; `raysys text fit` sees to it."""


Report = Callable[[int, float], None]
"""Told (step, the task's figure on validation) while a fit goes on; may raise to end it.

The figure is macro F1 of labels, micro F1 of spans, NDCG@10 of relevance.
"""


@dataclass(frozen=True)
class TextContext:
    """What a fit knows beside its texts.

    Attributes:
        scratch: a folder that all workers see, for checkpoints.
        seed: of everything random in the fit.
        resources: of a Ray Train run; None: train in this very process.
        report: told at each evaluation, where a transformer or a tagger is trained in this process.
    """

    scratch: Path
    seed: int = 0
    resources: Resources | None = None
    report: Report | None = None


def run_folder(name: str, settings: Settings, context: TextContext) -> Path:
    """Where a fit trains: the same for the same settings and seed, so that it can go on there."""
    told = f"{settings.model_dump_json()} {context.seed}"
    return context.scratch / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


class TextModel(ABC):
    """A fitted text learner: pure, thread-safe, no Ray inside.

    Attributes:
        task: that it does.
        reads_pairs: its transformer reads query and text together.
    """

    task: ClassVar[Task]
    reads_pairs: ClassVar[bool] = False

    @abstractmethod
    def predict(self, table: pa.Table) -> pa.Table:
        """One row of `PREDICTIONS[task]` for each row of `table`.

        Args:
            table: has the column `text`; for relevance also `query`. Other columns are not read.
                An empty text gets the prior's label, no spans, the lowest grade.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing empty folder: safetensors, JSON, tokenizer. No pickle."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> TextModel:
        """Read what `save` wrote; predictions are the same to the last bit."""


class SpanModel(TextModel):
    """A fitted learner of entities: it can be told which labels are asked for."""

    task: ClassVar[Task] = "entities"

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """All that it can say, in order."""

    @abstractmethod
    def predict(self, table: pa.Table, labels: Collection[str] | None = None) -> pa.Table:
        """See `TextModel.predict`.

        Args:
            table: has the column `text`.
            labels: that are asked for; None: all. Spans of others are left aside before overlaps
                are settled, so that none stands in the way of one that is asked for.
        """


def _listed(names: Collection[str]) -> str:
    """The first few, quoted."""
    shown = ", ".join(repr(name) for name in islice(names, SHOWN))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def check_labels(model: TextModel, labels: Collection[str], *, where: str) -> None:
    """Refuse labels that a model does not know.

    Args:
        model: fitted.
        labels: that are asked for.
        where: the setting that names them.

    Raises:
        UserError: an unknown label, or a task without spans.
    """
    if not isinstance(model, SpanModel):
        raise UserError(
            f"labels are asked for of entities, not of {model.task}",
            where=where,
            mend="leave them out",
        )
    for label in labels:
        if label not in model.labels:
            near = difflib.get_close_matches(label, model.labels, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"unknown label {label!r}",
                where=where,
                mend=f"{hint}known are {_listed(model.labels)}",
            )


S = TypeVar("S", bound=Settings)


class TextLearner(ABC, Generic[S]):
    """Anything that learns a text task.

    Attributes:
        name: as YAML and reports know it.
        tasks: which of the four it can learn.
        family: `transformer` or `baseline`.
        settings_model: its typed settings, as found under `learners.NAME` in YAML.
        model_class: what `fit` returns.
        unlabelled: whether texts of training that have no label are put to use.
        takes_copies: whether copies of training rows may stand among them (see
            `raysys.text.augment`): their column `augmented` names the method, and they stand behind
            their original.
    """

    unlabelled: ClassVar[bool] = False
    takes_copies: ClassVar[bool] = True
    name: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]]
    family: ClassVar[str]
    settings_model: ClassVar[type[Settings]]
    model_class: ClassVar[type[TextModel]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def length(self) -> tuple[str, float] | None:
        """The setting that says how long a fit by these settings takes, and what it says.

        As `Learner.length`. None: there is nothing to take less of.
        """
        return None

    @abstractmethod
    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> TextModel:
        """Fit on `train`; `validation` is for early stopping, temperature and thresholds only.

        Raises:
            UserError: data or settings that cannot work (one class only, say).
        """

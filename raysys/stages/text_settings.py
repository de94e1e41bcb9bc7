"""What `raysys text fit` may be told: texts, learners, and how they are judged."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from raysys.config import StageSettings
from raysys.datasets.labelled_files import CompleteJourneyProducts, LabelledFiles, TextSource
from raysys.datasets.splits import SplitSettings
from raysys.learners.text_protocol import Task
from raysys.stages.train_settings import ResourceSettings
from raysys.text.augment.settings import Augmentation
from raysys.text.behaviour_source import BehaviourSource

AnySource = Annotated[
    LabelledFiles | CompleteJourneyProducts | BehaviourSource, Field(discriminator="kind")
]


class TextSettings(StageSettings):
    """The YAML of `raysys text fit`.

    Attributes:
        task: `classify` (one label a text, which may be a path in a hierarchy), `entities` (spans
            of characters), `sentiment` (negative, neutral, positive, and a rating), `relevance`
            (how well a text answers a query).
        name: of the outcome's folder and of the pointer in the registry; null: `text-TASK`.
        sources: where the texts are; for relevance one may be the log: `kind: behaviour`.
        distinct: take what says the same (text, label, grade) once.
        sample: fit on about so many rows at most; null: on all.
        split: into train, validation and test.
        augmentation: copies of train with changed texts (for relevance: queries), of which all
            learners learn; nothing that is judged has any. Not for entities. Off by default.
        learners: name → its settings.
        tuned: name → a YAML file that `raysys tune` wrote; what is in it goes over `learners`.
        use_tuned: without such a line, take what a search over this very task found in the
            workspace (`tune/NAME`).
        relevant_from: for relevance: the grade from which a text is relevant, by which the
            probability that it is and the threshold of `relevant` are made; null: the middle
            between the lowest and the highest grade of train.
        blend: for classify and sentiment: try a weighted average of the learners as well.
        resources: of every fit, through Ray Train; null: in this very process.
        learner_resources: name → resources, for learners that need others.
        resamples: draws of the intervals.
        examples: how many of its errors the report shows.
        seed: of everything random.
    """

    kind_name: ClassVar[str] = "text"

    task: Task
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$")
    sources: tuple[AnySource, ...] = Field(min_length=1)
    distinct: bool = False
    sample: int | None = Field(None, ge=20)
    split: SplitSettings = SplitSettings()
    augmentation: Augmentation = Augmentation()
    learners: dict[str, dict[str, Any]] = Field(min_length=1)
    tuned: dict[str, str] = Field(default_factory=dict)
    use_tuned: bool = True
    relevant_from: float | None = Field(None, allow_inf_nan=False)
    blend: bool = True
    resources: ResourceSettings | None = None
    learner_resources: dict[str, ResourceSettings] = Field(default_factory=dict)
    resamples: int = Field(1000, ge=100, le=10_000)
    examples: int = Field(20, ge=0, le=1000)
    seed: int = Field(0, ge=0)

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, sources: object) -> object:
        return (sources,) if isinstance(sources, dict) else sources

    @model_validator(mode="after")
    def _names_are_learners(self) -> TextSettings:
        for where in ("tuned", "learner_resources"):
            for name in getattr(self, where):
                if name not in self.learners:
                    raise ValueError(f"{where}.{name}: not among the learners above")
        return self

    @model_validator(mode="after")
    def _behaviour_can_teach(self) -> TextSettings:
        behaviours = sum(isinstance(source, BehaviourSource) for source in self.sources)
        if behaviours and self.task != "relevance":
            raise ValueError(f"behaviour teaches relevance, not {self.task}")
        if behaviours > 1:
            raise ValueError("sources: name `kind: behaviour` once: a workspace has one log")
        if behaviours == len(self.sources) and self.split.by not in (None, "time"):
            raise ValueError(f"split.by: behaviour is divided by time, not {self.split.by}")
        return self

    @model_validator(mode="after")
    def _copies_keep_what_is_known(self) -> TextSettings:
        if self.augmentation and self.task == "entities":
            raise ValueError(
                "augmentation: changed words would not be where their spans say; "
                "leave it out for entities"
            )
        if self.augmentation.history_methods:
            kinds = ", ".join(method.kind for method in self.augmentation.history_methods)
            raise ValueError(f"augmentation.methods: {kinds}: a text has no history to change")
        return self

    @model_validator(mode="after")
    def _only_relevance_has_grades(self) -> TextSettings:
        if self.relevant_from is not None and self.task != "relevance":
            raise ValueError(f"relevant_from: {self.task} has no grades; leave it out")
        return self

    @property
    def files(self) -> tuple[TextSource, ...]:
        """The sources that are files."""
        return tuple(each for each in self.sources if not isinstance(each, BehaviourSource))

    @property
    def behaviour(self) -> BehaviourSource | None:
        """The source that is the workspace's log."""
        return next((each for each in self.sources if isinstance(each, BehaviourSource)), None)

    @property
    def title(self) -> str:
        """Name of folder and pointer."""
        return self.name or f"text-{self.task}"

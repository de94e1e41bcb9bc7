"""What `raysys features` may be told: which examples, over which folds, with which features."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from raysys.config import Settings
from raysys.features.negatives import NegativeSettings
from raysys.features.plan import EventType, FeaturePlan
from raysys.features.position_bias import PositionBiasSettings
from raysys.features.proposing import CandidateSettings
from raysys.features.requests import RequestSettings, RequestsPerFold


class CoVisitationSettings(Settings):
    """How neighbourhoods are fitted: see `CoVisitation.fit`; refitted every `refit_days`."""

    k: int = Field(30, ge=1, le=500)
    min_count: int = Field(4, ge=1)
    shrinkage: float = Field(5.0, ge=0)
    refit_days: float = Field(28, gt=0)


class FromRetrieval(Settings):
    """Examples are what retrieval would have offered at each order (or session)."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Literal["retrieval"] = Field("retrieval", alias="from")


class FromLog(Settings):
    """Examples are rows of the log: what was shown or done.

    Attributes:
        events: types of the rows that become examples. Rows with one `request_id` are a request;
            without one, what a user was shown or did at one moment.
        share: of the requests, drawn by a hash of what they are.
        keep_empty: keep requests that nothing came of.
        within_minutes: of rows that are no impressions: how long after them something of the same
            item and session still counts as their outcome. For impressions, `labels` says it.
        inferred: impressions that ingest concluded: as good as the logged ones (`use`), weighing
            the inverse of the probability with which they were drawn (`weigh`), or not at all
            (`leave_out`).
        heaviest: no row weighs more than this.
        negatives: for logs that tell only of what was wanted: rows with a gain above 0 draw others
            that were not; null: no row is made up. See `sample_negatives`.
    """

    model_config = ConfigDict(populate_by_name=True)

    from_: Literal["log"] = Field("log", alias="from")
    events: list[EventType] = Field(["impression"], min_length=1)
    share: float = Field(1.0, gt=0, le=1)
    keep_empty: bool = False
    within_minutes: float = Field(60, gt=0)
    inferred: Literal["use", "weigh", "leave_out"] = "use"
    heaviest: float = Field(50, ge=1)
    negatives: NegativeSettings | None = None


class FeaturesSettings(RequestSettings):
    """The YAML of `raysys features`.

    Attributes:
        parts: into how many the users are dealt, each part a task; null chooses by CPUs and
            events. The outcome does not depend on it.
        position_bias: estimate how likely each position is looked at from the impressions before
            the validation period, into `position_bias.json` of the workspace, which the plan's
            `examination` may name; null: nothing is estimated.
    """

    kind_name: ClassVar[str] = "features"

    group_by: list[Literal["order_id", "session_id"]] = ["order_id", "session_id"]
    examples: Annotated[FromRetrieval | FromLog, Field(discriminator="from_")] = FromRetrieval()
    history: int = Field(24, ge=1, le=500)
    parts: int | None = Field(None, ge=1, le=4096)
    seed: int = 17
    candidates: CandidateSettings = CandidateSettings()
    covisitation: CoVisitationSettings = CoVisitationSettings()
    position_bias: PositionBiasSettings | None = None
    plan: FeaturePlan

    @model_validator(mode="after")
    def _one_way_to_draw(self) -> FeaturesSettings:
        if isinstance(self.examples, FromLog) and self.requests_per_fold != RequestsPerFold():
            raise ValueError("requests_per_fold: examples from the log are drawn by their `share`")
        return self

    @field_validator("position_bias")
    @classmethod
    def _without_features(cls, bias: PositionBiasSettings | None) -> PositionBiasSettings | None:
        if bias is not None and bias.method == "regression_em":
            raise ValueError(
                "regression_em needs features, and these come after: choose all_pairs, adjacent "
                "or em, or call `estimate_propensities` on examples"
            )
        return bias

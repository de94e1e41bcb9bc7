"""The features of a surface as data: tables to keep, and what is read from them.

A plan is YAML, checked here; `raysys/features/live.py` runs it. Every feature is known strictly
before the moment it is read at: tables count only earlier events, promotions of a week are
printed before the week begins, and the catalogue does not change.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.schema import EVENT_TYPES

KeyColumn = Literal[
    "user", "item", "department", "category", "subcategory", "brand", "manufacturer", "store"
]
EventType = Literal[EVENT_TYPES]  # type: ignore[valid-type]
Days = Annotated[float, Field(gt=0, le=36_500)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class TableSpec(Settings):
    """State kept per key.

    Attributes:
        keys: one column, or two whose first is `user`.
        events: the event types it counts.
        half_lives_days: of its decayed counts and means.
        weight: what an event counts: 1 (`one`), its quantity, or quantity × price (`spend`).
        value: what its decayed means are of: the unit price, or the quantity.
    """

    keys: Annotated[list[KeyColumn], Field(min_length=1, max_length=2)]
    events: Annotated[list[EventType], Field(min_length=1)] = ["purchase"]
    half_lives_days: Annotated[list[Days], Field(min_length=1, max_length=8)] = [7, 28, 112]
    weight: Literal["one", "quantity", "spend"] = "one"
    value: Literal["price", "quantity"] = "price"

    @model_validator(mode="after")
    def _user_first(self) -> TableSpec:
        if len(self.keys) == 2 and (self.keys[0] != "user" or self.keys[1] == "user"):
            raise ValueError("of two keys the first must be user, the second another column")
        return self


class FromTable(Settings):
    """A number read from a table for each candidate.

    `decayed_count` and `decayed_mean` need `half_life_days`; the others read clocks: `moments`
    (how often, on distinct moments), `recency`, `age` and `interval` (days), `overdue`
    (recency ÷ interval: above 1 when the usual time has passed).
    """

    name: Name
    kind: Literal[
        "decayed_count", "decayed_mean", "moments", "recency", "age", "interval", "overdue"
    ]
    table: str
    half_life_days: Days | None = None


class OfTwo(Settings):
    """`share`: of ÷ over (NaN where over is 0); `log_ratio`: log of (of + 1) ÷ (over + 1) when
    they are counts, of of ÷ over when `smoothing` is 0."""

    name: Name
    kind: Literal["share", "log_ratio"]
    of: str
    over: str
    smoothing: Annotated[float, Field(ge=0)] = 1.0


class Static(Settings):
    """A column of the catalogue: its number, or for text the code of its sorted label."""

    name: Name
    kind: Literal["static"]
    column: Literal["price", "department", "category", "subcategory", "brand", "manufacturer"]


class Promotion(Settings):
    """1 if the candidate is promoted in the request's store and week, 0 if not, NaN unknown."""

    name: Name
    kind: Literal["promotion"]
    medium: Literal["display", "mailer"]


class Moment(Settings):
    """The request's own clock, UTC: hour of the day (0–23) or day of the week (Monday 0)."""

    name: Name
    kind: Literal["moment"]
    unit: Literal["hour", "weekday"]


class CoVisitation(Settings):
    """Summed cosine of the candidate with the user's last `history` items (co-purchase)."""

    name: Name
    kind: Literal["covisitation"]
    history: Annotated[int, Field(ge=1, le=200)] = 20


FeatureSpec = Annotated[
    FromTable | OfTwo | Static | Promotion | Moment | CoVisitation, Field(discriminator="kind")
]


class FeaturePlan(Settings):
    """Tables and features of a surface, in the order the columns will have."""

    tables: dict[Name, TableSpec]
    features: Annotated[list[FeatureSpec], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in column order."""
        return tuple(feature.name for feature in self.features)

    @model_validator(mode="after")
    def _names_resolve(self) -> FeaturePlan:
        known: set[str] = set()
        for feature in self.features:
            if feature.name in known:
                raise ValueError(f"feature {feature.name!r} is declared twice")
            if isinstance(feature, FromTable):
                self._check_table(feature)
            elif isinstance(feature, OfTwo):
                for other in (feature.of, feature.over):
                    if other not in known:
                        raise ValueError(
                            f"feature {feature.name!r} reads {other!r}, which is not declared "
                            f"above it; declared are {', '.join(sorted(known)) or 'none'}"
                        )
            known.add(feature.name)
        for needed, keys in (("item", "[item]"), ("user", "[user]"), ("user_item", "[user, item]")):
            if needed not in self.tables:
                raise ValueError(f"table {needed!r} is required (keys: {keys}): candidates need it")
        return self

    def _check_table(self, feature: FromTable) -> None:
        if feature.table not in self.tables:
            raise ValueError(
                f"feature {feature.name!r} reads table {feature.table!r}; "
                f"there are {', '.join(sorted(self.tables))}"
            )
        offered = self.tables[feature.table].half_lives_days
        decayed = feature.kind.startswith("decayed")
        if decayed and feature.half_life_days not in offered:
            raise ValueError(
                f"feature {feature.name!r}: half_life_days {feature.half_life_days} is not kept "
                f"by table {feature.table!r}, which has {', '.join(f'{d:g}' for d in offered)}"
            )
        if not decayed and feature.half_life_days is not None:
            raise ValueError(f"feature {feature.name!r}: {feature.kind} takes no half_life_days")

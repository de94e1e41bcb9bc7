"""What a plan keeps by key (tables, windows, last things), and the vectors it is given."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raysys.config import Settings
from raysys.schema import EVENT_TYPES

KeyColumn = Literal[
    "user",
    "session",
    "query",
    "item",
    "department",
    "category",
    "subcategory",
    "brand",
    "manufacturer",
    "store",
    "weekday",
    "hour",
]
CategoryColumn = Literal["department", "category", "subcategory", "brand", "manufacturer"]
EventType = Literal[EVENT_TYPES]  # type: ignore[valid-type]
Weight = Literal["one", "quantity", "spend", "examination"]
Value = Literal["price", "quantity"]
Days = Annotated[float, Field(gt=0, le=36_500)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class KeyedSpec(Settings):
    """State by key, whatever is kept.

    Attributes:
        keys: up to three columns of an event, none for one record of everything. `weekday` and
            `hour` are those of the event, UTC; when reading, those of the request.
        events: the event types it counts.
        max_records: at the change of a day no more than these are kept, the newest by their last
            event; null keeps all.
    """

    keys: Annotated[list[KeyColumn], Field(max_length=3)]
    events: Annotated[list[EventType], Field(min_length=1)] = ["purchase"]
    max_records: Annotated[int, Field(ge=1)] | None = None

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: list[KeyColumn]) -> list[KeyColumn]:
        if len(set(keys)) < len(keys):
            raise ValueError("a column may be a key only once")
        return keys


class TableSpec(KeyedSpec):
    """Decayed counts, means and moments by key.

    Attributes:
        half_lives_days: of its decayed counts and means.
        weight: what an event counts: 1 (`one`), its quantity, quantity × price (`spend`), or how
            likely its position is looked at (`examination`; 1 where the position is unknown).
        value: what its decayed means are of: the unit price, or the quantity.
        max_idle_days: a key without an event for longer than that is forgotten; null: never.
    """

    half_lives_days: Annotated[list[Days], Field(min_length=1, max_length=8)] = [7, 28, 112]
    weight: Weight = "one"
    value: Value = "price"
    max_idle_days: Days | None = None


class WindowSpec(KeyedSpec):
    """Exact aggregates by key over the last hours or days, in whole buckets.

    Attributes:
        unit: of `bucket` and `spans`.
        bucket: width of a bucket; a day must be whole buckets, or a bucket whole days.
        spans: lengths of the windows, rising, each a multiple of `bucket`. A key holds one
            number a bucket of the longest (five where a value is kept), 4,096 buckets at most.
        weight: what an event counts, as in tables.
        value: what sum, mean, min and max are of; null keeps counts and days only.
    """

    unit: Literal["hour", "day"] = "day"
    bucket: Annotated[int, Field(ge=1, le=8760)] = 1
    spans: Annotated[list[int], Field(min_length=1, max_length=8)] = [7, 28]
    weight: Weight = "one"
    value: Value | None = None

    @property
    def hours(self) -> int:
        """Hours of a bucket."""
        return self.bucket * (24 if self.unit == "day" else 1)

    @model_validator(mode="after")
    def _whole(self) -> WindowSpec:
        if 24 % self.hours and self.hours % 24:
            raise ValueError(f"bucket: {self.bucket} hours neither divide a day nor are whole days")
        if self.spans != sorted(set(self.spans)) or self.spans[0] < 1:
            raise ValueError("spans: give them rising, each above 0")
        for span in self.spans:
            if span % self.bucket:
                raise ValueError(f"spans: {span} is not a multiple of the bucket, {self.bucket}")
        if self.spans[-1] // self.bucket > 4096:
            raise ValueError("spans: more than 4096 buckets; make the bucket wider")
        return self


class LastSpec(KeyedSpec):
    """The last distinct items (or categories, brands, …) of a key, newest first.

    Attributes:
        of: what is remembered.
        n: how many.
        max_idle_days: what was seen longer ago is forgotten; null: never.
    """

    of: Literal["item"] | CategoryColumn = "item"
    n: Annotated[int, Field(ge=1, le=1000)] = 10
    max_idle_days: Days | None = None


class VectorSpec(Settings):
    """Vectors made elsewhere, from a file.

    Attributes:
        file: its path, from the folder that `load_resources` is given. A Parquet file says whose
            each vector is: columns `item_id`, `query` or both (one of them null in each row), and
            `vector`. A safetensors file holds matrices by number, and fits one catalogue only.
        items: of safetensors the tensor float16 or float32[n_items, d], rows by item number.
        queries: of safetensors the tensor float[n_queries, d], rows by query number; null where
            there is none.
    """

    file: str
    items: str = "items"
    queries: str | None = None

    @property
    def by_id(self) -> bool:
        """Whether the file says whose each vector is."""
        return self.file.endswith(".parquet")

    @model_validator(mode="after")
    def _tensors(self) -> VectorSpec:
        if self.by_id and (self.items != "items" or self.queries is not None):
            raise ValueError(
                "items and queries name tensors, and a Parquet file has none: it has the columns "
                "item_id, query and vector"
            )
        return self


class TextVectorSpec(Settings):
    """Vectors made by a transformer from texts of items, and from queries where features ask it.

    Attributes:
        model: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging Face encoder.
        text: columns of items that are read, in this order; empty: nearly all.
        max_tokens: read of each text.
    """

    model: str
    text: tuple[str, ...] = ()
    max_tokens: Annotated[int, Field(ge=4, le=512)] = 32


def _form(given: Any) -> str:
    """Which of the two forms a mapping, or a model of one, is meant as."""
    has = given.__contains__ if isinstance(given, dict) else lambda name: hasattr(given, name)
    return "TextVectorSpec" if has("model") and not has("file") else "VectorSpec"


AnyVectorSpec = Annotated[
    Annotated[VectorSpec, Tag("VectorSpec")] | Annotated[TextVectorSpec, Tag("TextVectorSpec")],
    Discriminator(_form),
]

"""What the YAML of a text task says of a shop's files: which columns are text, label, grade, …"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from raysys.config import Settings
from raysys.datasets import complete_journey
from raysys.datasets.mapping import AnyTable, TableFiles
from raysys.datasets.times import TimeFormat

LEVELS: Final = " > "
"""Between the names of a label's levels, from the top."""

Many = Annotated[tuple[str, ...], Field(min_length=1)]

_SINGLE: Final = (
    *("rating", "spans", "tokens", "tags", "attributes", "query", "grade", "weight"),
    *("id", "item", "group", "time", "split", "answer"),
)


class ItemTexts(AnyTable):
    """Files of items, for judgements that name an item by its id.

    Attributes:
        id: column of the item's id.
        text: column of its text, or several, joined.
        join: between texts of several columns.
    """

    id: str
    text: Many
    join: str = " "

    @field_validator("text", mode="before")
    @classmethod
    def _a_list(cls, text: object) -> object:
        return (text,) if isinstance(text, str) else text

    def table(self) -> TableFiles:
        """As the readers take it."""
        columns = {"id": self.id, **_numbered("text", self.text)}
        return TableFiles(**_where(self), columns=columns, keys=("id",))


class TextColumns(Settings):
    """Which column is what; a task reads those that it needs.

    Attributes:
        text: column of the text, or several, joined. For relevance: the item's. What is left out
            is looked for among names that data sets use, and told (see `labelled_names.settled`).
        join: between texts of several columns; empty ones are left out.
        label: column of the label; several: the levels of a hierarchy, from the top.
        label_separator: splits a single label column into levels; a list is levels as it is.
        label_names: what the files call a label → what it shall be called.
        rating: column of a rating; for sentiment the label where no `label` is given.
        rating_classes: label → the highest rating that it still covers, in rising order.
        spans: column with a list of {start, end, label}: characters from 0, `end` exclusive; or
            what annotators call these (see `span_notations`).
        tokens: column with a list of tokens, instead of `text`.
        tags: column with the tags of the tokens, in BIO or its like, instead of `spans`.
        tag_names: what the tags are called, where they are numbers from 0.
        token_join: between tokens; null: a blank, and nothing for Chinese and its like.
        attributes: column with a mapping of attributes to values (a text, a list of texts, or a
            mapping whose keys they are); values become spans wherever the text holds them.
        attribute_columns: attribute → column that holds its value.
        no_value: what a value says where there is none, in lower case.
        query: column of the query.
        item: column of the item's id; null: the text stands for it.
        grade: column of how well the item answers the query: a number, higher is better.
        weight: column of a judgement's weight; null: all 1.
        id: column of the row's id; null: made of file and row number.
        group: column whose equal values are never divided between splits.
        time: column of a moment, for splits by time.
        time_format: how it is written.
        split: column that says the split of every row, for splits that are given.
        answer: column in which an annotator accepts, rejects or ignores a row, as Prodigy has it;
            what is not accepted goes aside.
        in_split: the split of all rows of these files.
    """

    text: tuple[str, ...] = ()
    join: str = " "
    label: tuple[str, ...] = ()
    label_separator: str | None = Field(None, min_length=1)
    label_names: dict[str, str] = {}
    rating: str | None = None
    rating_classes: dict[str, float] = {"negative": 2, "neutral": 3, "positive": 5}
    spans: str | None = None
    tokens: str | None = None
    tags: str | None = None
    tag_names: tuple[str, ...] = ()
    token_join: str | None = None
    attributes: str | None = None
    attribute_columns: dict[str, str] = {}
    no_value: tuple[str, ...] = ("", "n/a", "na", "none", "null", "-", "unknown")
    query: str | None = None
    item: str | None = None
    grade: str | None = None
    weight: str | None = None
    id: str | None = None
    group: str | None = None
    time: str | None = None
    time_format: TimeFormat = TimeFormat()
    split: str | None = None
    answer: str | None = None
    in_split: Literal["train", "validation", "test"] | None = None

    @field_validator("text", "label", mode="before")
    @classmethod
    def _a_list(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names

    @field_validator("rating_classes")
    @classmethod
    def _rising(cls, classes: dict[str, float]) -> dict[str, float]:
        bounds = list(classes.values())
        if len(bounds) < 2 or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError("give two classes or more, each with a higher bound than the last")
        return classes

    @model_validator(mode="after")
    def _one_way(self) -> TextColumns:
        if self.spans and (self.attributes or self.attribute_columns):
            raise ValueError("give spans or attributes, not both")
        if self.spans and len(self.text) > 1:
            raise ValueError("spans count characters of one column: give a single text")
        if self.tokens and (self.text or self.spans):
            raise ValueError("tokens and tags say text and spans: leave these out beside them")
        if self.tags and not self.tokens:
            raise ValueError("tags: give `tokens`, the column of what they are tags of")
        if self.label_separator and len(self.label) > 1:
            raise ValueError("label_separator splits one column: give a single label")
        if self.split and self.in_split:
            raise ValueError("give split or in_split, not both")
        return self

    def roles(self) -> dict[str, str]:
        """The reader's name → column of the file."""
        columns = {**_numbered("text", self.text), **_numbered("label", self.label)}
        columns |= {name: getattr(self, name) for name in _SINGLE if getattr(self, name)}
        values = self.attribute_columns.items()
        return columns | {f"attribute.{name}": column for name, column in values}


class LabelledFiles(TextColumns, AnyTable):
    """Files of texts with what is known of them.

    Attributes:
        optional: roles (`rating`, `group`, …) whose column every file may lack.
        items: for relevance, where the texts of the items are in files of their own.
    """

    kind: Literal["files"] = "files"
    items: ItemTexts | None = None

    @model_validator(mode="after")
    def _text_somewhere(self) -> LabelledFiles:
        if self.items is not None and (self.text or not self.item):
            raise ValueError("items: give `item`, the column of its id, and no `text` beside it")
        known = {name.partition(".")[0] for name in self.roles()}
        for name in self.optional:
            if name not in known or name in ("text", "item"):
                raise ValueError(f"optional: {name!r} is no column that a file may lack")
        return self

    def table(self) -> TableFiles:
        """As the readers take it."""
        columns = self.roles()
        keys = [name for name in columns if name.startswith(("text.", "tokens"))]
        keys = keys or [name for name in columns if name == "item"]
        spare = tuple(name for name in columns if name.partition(".")[0] in self.optional)
        where = {**_where(self), "optional": spare}
        return TableFiles(**where, columns=columns, keys=tuple(keys[:1]))

    def whole(self) -> TableFiles:
        """All columns of the files, for who looks which of them there are."""
        return TableFiles(**_where(self), columns={}, everything=True)


class CompleteJourneyProducts(TextColumns):
    """The products of the packaged grocery log; needs no other file.

    What a product is (in plain words), its size and whether it is the shop's own brand say which
    category it belongs to. Products of one type stay together, so the types of the test were
    never seen.
    """

    kind: Literal["complete_journey"] = "complete_journey"
    text: tuple[str, ...] = ("title", "brand")
    join: str = ", "
    label: tuple[str, ...] = ("department", "product_category")
    group: str | None = "product_type"

    def table(self) -> TableFiles:
        """As the readers take it; `title` is the adapter's."""
        path = str(complete_journey.folder() / "products.parquet")
        return TableFiles(paths=(path,), columns=self.roles(), everything=True)


TextSource = Annotated[LabelledFiles | CompleteJourneyProducts, Field(discriminator="kind")]


def _numbered(name: str, columns: tuple[str, ...]) -> dict[str, str]:
    return {f"{name}.{number}": column for number, column in enumerate(columns)}


def _where(files: AnyTable) -> dict[str, Any]:
    """What says where files lie and how their rows are written."""
    return {name: getattr(files, name) for name in AnyTable.model_fields if name != "optional"}

"""Requests and answers of `/v1/text/*`, version 1: the models that OpenAPI shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from raysys.serving.api import Plain, Query

MAX_TEXTS = 256
MAX_TEXT = 10_000  # characters

MAX_LABELS = 256

Label = Annotated[str, StringConstraints(min_length=1, max_length=256), *Plain]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT), *Plain]
Texts = Annotated[
    list[Text],
    Field(min_length=1, max_length=MAX_TEXTS, description="Answered in their order."),
]


class _Request(BaseModel):
    """Unknown fields are refused: a misspelt one would otherwise be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelRequest(_Request):
    """Texts to label."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["Ice cream, 48 oz"]}]})

    texts: Texts
    choices: Annotated[
        int, Field(ge=0, le=5, strict=True, description="How many of the likeliest labels to list.")
    ] = 3


class EntitiesRequest(_Request):
    """Texts to find spans in."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["Crocs Women's Jayna Flat, Navy, 4 M US"]}]}
    )

    texts: Texts
    labels: Annotated[
        list[Label] | None,
        Field(
            min_length=1,
            max_length=MAX_LABELS,
            description="That are asked for, such as the attributes of a category: spans of others "
            "are left out, and stand in nobody's way. null: all.",
        ),
    ] = None


class RelevanceRequest(_Request):
    """Texts to grade as answers to a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "angle bracket", "texts": ["12-Gauge Angle", "Deck Stain"]}]
        }
    )

    query: Query
    texts: Texts


class Choice(BaseModel):
    """A label that may be right."""

    label: str
    probability: float


class LabelledText(BaseModel):
    """What one text is."""

    label: str | None = Field(
        description='Of a hierarchy: names from the top, " > " between. null: none is sure enough.'
    )
    probability: float = Field(description="Calibrated; where label is null, of the nearest.")
    choices: list[Choice] = Field(description="The likeliest labels, best first.")


class JudgedText(LabelledText):
    """How one text sounds."""

    rating: float | None = Field(description="In the units of the reviews; null: none was learned.")


class FoundSpan(BaseModel):
    """A part of a text that means something."""

    start: int = Field(description="Its first character (Unicode code points), from 0.")
    end: int = Field(description="The character after its last.")
    label: str
    text: str
    probability: float


class SpannedText(BaseModel):
    """What was found in one text."""

    spans: list[FoundSpan]


class GradedText(BaseModel):
    """How well one text answers the query."""

    grade: float = Field(description="In the units of the judgements; higher is better.")
    position: int = Field(description="Among the texts of the request, 1 for the best.")
    probability: float | None = Field(
        default=None,
        description="That the text is relevant: its grade, were it judged, at or above the cut of "
        "the task. Calibrated. Left out where the model was not.",
    )
    relevant: bool | None = Field(
        default=None,
        description="Whether the probability reaches the threshold that was chosen on validation. "
        "Left out with it.",
    )


class _Answer(BaseModel):
    request_id: str
    bundle: str = Field(description="Id of the bundle that answered.")
    took_ms: float


class ClassifyAnswer(_Answer):
    """One result a text, in the order of the texts."""

    results: list[LabelledText]


class SentimentAnswer(_Answer):
    """One result a text, in the order of the texts."""

    results: list[JudgedText]


class EntitiesAnswer(_Answer):
    """One result a text, in the order of the texts."""

    results: list[SpannedText]


class RelevanceAnswer(_Answer):
    """One result a text, in the order of the texts."""

    results: list[GradedText]

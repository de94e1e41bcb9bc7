"""Requests and answers over HTTP, version 1: the models that OpenAPI shows."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

MAX_ITEM_IDS = 500
MAX_QUERY = 1000

_PLAIN = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]*$"


_matches = re.compile(_PLAIN).fullmatch


def _plain(text: str) -> str:
    if not text.isprintable() and not _matches(text):  # of hundreds of ids nearly all are
        raise ValueError("holds a control character")
    return text


Plain = (AfterValidator(_plain), Field(json_schema_extra={"pattern": _PLAIN}))
"""Of a text without control characters; tabs and ends of lines are none."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=200), *Plain]
Query = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_QUERY, strip_whitespace=True), *Plain
]
ItemIds = Annotated[list[Id], Field(max_length=MAX_ITEM_IDS)]
K = Annotated[
    int, Field(ge=1, strict=True, description="Length of the list, at most the server's k_max.")
]
Explain = Annotated[
    bool, Field(description="Say why: sources, features, scores, policy, milliseconds.")
]
Deadline = Annotated[
    float | None,
    Header(
        alias="X-Deadline-Ms",
        gt=0,
        le=60_000,
        allow_inf_nan=False,
        description="Milliseconds after which the answer is of no use: who would not be done by "
        "then is left out.",
    ),
]
Urgency = Annotated[
    Literal["normal", "background"],
    Header(alias="X-Priority", description="background: all others go first."),
]


Attributes = Annotated[
    dict[Id, Annotated[str, StringConstraints(max_length=200), *Plain]],
    Field(
        max_length=20,
        description="What the caller knows of who asks, such as country or device: experiments "
        "ask for it (eligibility, segments), and nothing else does.",
    ),
]


class _Request(BaseModel):
    """Unknown fields are refused: a misspelt one would otherwise be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Filters(_Request):
    """Only items with one of the values of each column given; and a range of prices."""

    department: Annotated[list[Id], Field(max_length=100)] | None = None
    category: Annotated[list[Id], Field(max_length=100)] | None = None
    subcategory: Annotated[list[Id], Field(max_length=100)] | None = None
    brand: Annotated[list[Id], Field(max_length=100)] | None = None
    manufacturer: Annotated[list[Id], Field(max_length=100)] | None = None
    min_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    in_stock: Annotated[
        bool, Field(description="Only what is in stock, where the deployment is told.")
    ] = False


class RecommendRequest(_Request):
    """A list for a user or a session, without a query."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "1", "place": "home", "k": 10}]}
    )

    user_id: Id | None = None
    session_id: Id | None = None
    attributes: Attributes = {}
    place: Annotated[
        Literal["home", "item", "cart"],
        Field(description="Where the list stands: item and cart are about item_ids."),
    ] = "home"
    item_ids: Annotated[
        ItemIds, Field(description="What is in view: the item, the cart, or what was seen last.")
    ] = []
    filters: Filters | None = None
    k: K = 10
    explain: Explain = False

    @model_validator(mode="after")
    def _somebody(self) -> RecommendRequest:
        if self.user_id is None and self.session_id is None:
            raise ValueError("user_id or session_id is required")
        if self.place != "home" and not self.item_ids:
            raise ValueError(f"place {self.place!r} is about items: give item_ids")
        return self


class SearchRequest(_Request):
    """A list for a query, ranked for a user where one is given."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "ice cream", "user_id": "1", "k": 10}]}
    )

    query: Query
    user_id: Id | None = None
    session_id: Id | None = None
    attributes: Attributes = {}
    filters: Filters | None = None
    k: K = 10
    explain: Explain = False


class SimilarRequest(_Request):
    """Items like one, ordered for a user where one is given."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_id": "1082185", "k": 10}]})

    item_id: Id
    user_id: Id | None = None
    session_id: Id | None = None
    attributes: Attributes = {}
    filters: Filters | None = None
    k: K = 10
    explain: Explain = False


class RankRequest(_Request):
    """The caller's own items, all of them ranked, for a query or a user."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "1", "item_ids": ["1082185", "995242"]}]}
    )

    item_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEM_IDS)]
    query: Query | None = None
    user_id: Id | None = None
    session_id: Id | None = None
    attributes: Attributes = {}
    explain: Explain = False

    @model_validator(mode="after")
    def _complete(self) -> RankRequest:
        if self.query is None and self.user_id is None and self.session_id is None:
            raise ValueError("query, user_id or session_id is required")
        if len(set(self.item_ids)) < len(self.item_ids):
            raise ValueError("item_ids holds an item twice")
        return self


class Why(BaseModel):
    """How one item came to its place."""

    sources: list[str] = Field(description="Who proposed it.")
    base_scores: dict[str, float] = Field(description="What every learner says.")
    ensemble_score: float | None = None
    probability: float | None = Field(None, description="Of being bought, calibrated.")
    relevance: float | None = Field(None, description="To query or item, 1 for the best.")
    reranked: float | None = Field(
        None, description="What the cross-encoder says; null: it did not look at this one."
    )
    features: dict[str, float | None] = Field(description="null: knows nothing.")
    moved_by: dict[str, float] = Field(
        {},
        description="What set it apart from the other candidates, the strongest first: features, "
        "by their contributions to all learners, in standard deviations of the ensemble. Of the "
        "first 20 items.",
    )
    contributions: dict[str, dict[str, float]] = Field(
        {}, description="The same for every learner, in its own units."
    )
    policy: list[str] = Field([], description="What the policy did to it.")
    propensity: float = Field(1.0, description="With which it came here, given those above it.")


class ListedItem(BaseModel):
    """One item of an answer."""

    item_id: str
    score: float | None = Field(description="Of the ranking, within one answer; null: unknown.")
    position: int = Field(description="1 for the first.")
    why: Why | None = Field(None, exclude_if=lambda why: why is None)


class Explanation(BaseModel):
    """How the answer as a whole came about."""

    place: str
    timestamp: int = Field(description="UTC ms at which features were read.")
    n_candidates: int
    by_source: dict[str, int] = Field(description="Candidates by who proposed them.")
    understood: dict[str, list[str]] = Field(
        {}, description="Words of the query that are not known, and what they were taken for."
    )
    fallback: str = Field(description="Which of the ensemble's combinations answered.")
    weights: dict[str, float] = Field(description="Shares of the learners in it.")
    policy: dict[str, Any]
    cache: str = Field(
        description="How the same request without explain would be known: hit, stale, miss; off."
    )
    milliseconds: dict[str, float] = Field(description="By stage.")


class ListAnswer(BaseModel):
    """A ranked list."""

    request_id: str = Field(description="Send it back with events, so that feedback joins.")
    items: list[ListedItem]
    experiments: dict[str, str] = Field(
        {},
        description="Experiment → arm that this list shows; left out where it is in none.",
        exclude_if=lambda arms: not arms,
    )
    bundle: str = Field(description="Id of the bundle that answered.")
    arm: str = Field(description="The name by which that bundle was chosen.")
    degraded: bool = Field(description="Whether something was left out; see left_out.")
    left_out: list[str] = Field(
        [],
        description="Learners, the search by meaning, or the second look at the best few, that "
        "failed or missed the deadline.",
    )
    reasons: dict[str, str] = Field(
        {},
        description="Why each was left out: deadline, failed, not finite; of what lies in another "
        "process also down, loading, overloaded.",
    )
    cold_start: bool = Field(description="Whether nothing was known of the user.")
    unknown_item_ids: list[str] = Field([], description="Items that the catalogue lacks.")
    took_ms: float
    explanation: Explanation | None = Field(None, exclude_if=lambda said: said is None)


class Health(BaseModel):
    """Liveness."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Readiness, and what answers."""

    status: Literal["ready"] = "ready"
    bundle: str | None = Field(None, description="Id of the bundle that ranks; null: none does.")
    arm: str | None = None
    surface: str | None = None
    learners: list[str] = []
    items: int = 0
    users: int = 0
    as_of: int | None = Field(None, description="UTC ms of the newest event in the state.")
    loaded_at: str
    text: dict[str, str] = Field({}, description="Text task → id of the bundle that answers it.")

"""Requests that a replica answers before it is ready, so that no user pays for compiling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pydantic import TypeAdapter, ValidationError

from raysys.catalogue import Catalogue
from raysys.serving.api import (
    Id,
    Query,
    RankRequest,
    RecommendRequest,
    SearchRequest,
    SimilarRequest,
)

_USERS = 3
_ID: TypeAdapter[str] = TypeAdapter(Id)
_QUERY: TypeAdapter[str] = TypeAdapter(Query)


def warming_requests(
    users: Sequence[str], catalogue: Catalogue
) -> Iterator[list[RecommendRequest | SearchRequest | SimilarRequest | RankRequest]]:
    """Of every kind, for a few users and a stranger, a list each.

    Queries differ, as a remembered one would tell nothing of what a new one costs.

    Args:
        users: known ones; a few will do.
        catalogue: gives words to search for, and items.
    """
    every = map(catalogue.text, range(len(catalogue)))
    texts = (text.split(",")[0][:90] for text in every if text)
    some = dict.fromkeys(itertools.islice(texts, 100))
    queries = [query for query in some if query.strip() and _fits(_QUERY, query)][: _USERS + 1]
    items = [item for item in map(str, catalogue.ids[:100]) if _fits(_ID, item)]
    known = [user for user in users if _fits(_ID, user)][:_USERS]
    for number, user_id in enumerate([*known, "a stranger"]):
        query = queries[number] if number < len(queries) else f"warm {number}"
        asked: list[RecommendRequest | SearchRequest | SimilarRequest | RankRequest] = [
            RecommendRequest(user_id=user_id, k=1),
            SearchRequest(query=query, user_id=user_id, k=1),
        ]
        if items:
            asked += [
                SimilarRequest(item_id=items[0], user_id=user_id, k=1),
                RankRequest(item_ids=items, user_id=user_id),
                RankRequest(item_ids=items, user_id=user_id, query=query),
                RecommendRequest(user_id=user_id, place="cart", item_ids=items[:2], k=1),
            ]
        yield asked


def _fits(adapter: TypeAdapter[str], text: str) -> bool:
    """Whether a caller might send this: catalogues hold control characters, no request may."""
    try:
        adapter.validate_python(text)
    except ValidationError:
        return False
    return True

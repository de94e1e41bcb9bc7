"""Requests that a replica answers before it is ready, so that no user pays for compiling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from raysys.catalogue import Catalogue
from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest, SimilarRequest

_USERS = 3


def warming_requests(
    users: Sequence[str], catalogue: Catalogue
) -> Iterator[list[RecommendRequest | SearchRequest | SimilarRequest | RankRequest]]:
    """Of every kind, for a few users and a stranger, a list each.

    Queries differ, as a remembered one would tell nothing of what a new one costs.

    Args:
        users: known ones; a few will do.
        catalogue: gives words to search for, and items.
    """
    texts = (text.split(",")[0][:90] for text in catalogue.texts if text)
    some = dict.fromkeys(itertools.islice(texts, 100))
    queries = [query for query in some if query.strip()][: _USERS + 1]
    items = [str(item) for item in catalogue.ids[:100]]
    for number, user_id in enumerate([*users[:_USERS], "a stranger"]):
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

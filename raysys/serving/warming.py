"""Requests that a replica answers before it is ready, so that no user pays for compiling."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from pydantic import TypeAdapter, ValidationError

from raysys.catalogue import Catalogue
from raysys.registry import Bundle
from raysys.serving.api import (
    Id,
    Query,
    RankRequest,
    RecommendRequest,
    SearchRequest,
    SimilarRequest,
)
from raysys.serving.asking import Ask, Context
from raysys.serving.encoding import UnavailableError
from raysys.serving.intake import ListRequest
from raysys.serving.ranker import Ranker
from raysys.serving.transformer import TransformerArgs

log = logging.getLogger("raysys")

_USERS = 3
_ID: TypeAdapter[str] = TypeAdapter(Id)
_QUERY: TypeAdapter[str] = TypeAdapter(Query)


def warm_ranking(
    ranker: Ranker,
    bundle: Bundle,
    transformer: TransformerArgs | None,
    asking: Callable[[ListRequest, Context], tuple[Ask, list[str]]],
) -> None:
    """Answer requests of every kind.

    Args:
        ranker: answers.
        bundle: its own.
        transformer: of the deployment that reads texts and histories; None: they are read here.
        asking: turns a request into numbers.
    """
    began = time.perf_counter()
    if transformer is not None:
        try:
            ranker.encoding.prepare(transformer.start_s)
        except UnavailableError as error:
            log.error("the transformer is not ready, answers begin without it: %s", error)
    rounds = warming_requests(bundle.features.users, bundle.features.catalogue)
    for number, asked in enumerate(rounds):
        for request in asked:
            ask, _ = asking(request, Context(float("inf")))
            ranker.arrange(ranker.scored(ask), ask)
        if not number:  # these loaded and compiled: nothing will take that long again
            ranker.costs.forget()
    log.info("%s warmed up in %.1f s", bundle.id, time.perf_counter() - began)


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

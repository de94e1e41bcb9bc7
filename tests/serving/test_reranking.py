"""The second look: the best few stay the best few, and it is left out when there is no time."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raysys.registry import Reranking
from raysys.retrieval.merge import Candidates
from raysys.serving.asking import Ask, Ranking
from raysys.serving.encoding import UnavailableError
from raysys.serving.members import Costs
from raysys.serving.reranking import RERANK, RerankArgs, Reranker, blended

SCORES = arrays(np.float32, 12, elements=st.floats(-8, 8, width=32))


@given(SCORES, SCORES, st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0]))
def test_nobody_falls_behind_those_that_were_not_looked_at(
    scores: np.ndarray, said: np.ndarray, top: int, weight: float
) -> None:
    order = np.argsort(-scores, kind="stable")
    reranked = np.full(12, np.nan, np.float32)
    reranked[order[:top]] = said[order[:top]]
    found = blended(scores, reranked, weight)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_array_equal(found[order[top:]], scores[order[top:]])
    if top < 12:
        assert found[order[:top]].min() >= scores[order[top:]].max()
    first = said if weight == 1 else scores
    if weight != 0.3 and np.ptp(first[order[:top]]):
        best = np.argmax(found[order[:top]])
        assert first[order[:top]][best] >= first[order[:top]].max() - 1e-4 * np.ptp(first)


class Reads:
    """A cross-encoder that likes high numbers, in a process that may be away."""

    remote = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.away = ""

    def encode(self, *given: object) -> object:
        raise AssertionError("nobody asked for vectors")

    def prepare(self, wait_s: float) -> None:
        raise AssertionError

    def pairs(self, query: str, items: np.ndarray, wait_s: float) -> np.ndarray:
        if self.away:
            raise UnavailableError(self.away)
        self.asked.append((query, items.tolist()))
        return items.astype(np.float32)


def ranking() -> Ranking:
    items = np.arange(6, dtype=np.int32)
    pool = Candidates(items, np.ones(6, np.uint8), ("words",))
    return Ranking(pool, 0, scores=np.array([6, 5, 4, 3, 2, 1], np.float32))


def reranker(reads: Reads, costs: Costs, **args: float) -> Reranker:
    part = Reranking("reader", None, top=3, weight=1.0)  # type: ignore[arg-type]
    return Reranker(part, RerankArgs(**args), reads, costs)  # type: ignore[arg-type]


def ask(until: float = np.inf, text: str | None = "milk", surface: str = "search") -> Ask:
    return Ask(surface, 0, 5, 0, 0, "r", until=until, text=text)


def test_the_best_few_are_put_in_order_once_more() -> None:
    reads, found = Reads(), ranking()
    assert reranker(reads, Costs()).rerank(found, ask())
    assert reads.asked == [("milk", [0, 1, 2])]
    assert np.argsort(-found.scores).tolist() == [2, 1, 0, 3, 4, 5]
    again = ranking()
    again.reranked = found.reranked  # as recorded: nobody is asked
    assert reranker(reads, Costs(), weight=0.0).rerank(again, ask()) and len(reads.asked) == 1
    assert np.argsort(-again.scores).tolist() == [0, 1, 2, 3, 4, 5]
    assert reranker(reads, Costs(), top=5, weight=1.0).rerank(ranking(), ask())
    assert reads.asked[-1] == ("milk", [0, 1, 2, 3, 4])


def test_without_a_query_or_two_candidates_there_is_nothing_to_read() -> None:
    reads = Reads()
    second = reranker(reads, Costs())
    assert not second.rerank(ranking(), ask(text=None, surface="recommend"))
    alone = ranking()
    alone.pool = Candidates(alone.pool.items[:1], alone.pool.sources[:1], ("words",))
    assert not second.rerank(alone, ask()) and not alone.reasons and not reads.asked


def test_it_is_left_out_where_less_time_is_left_than_it_took_and_says_so() -> None:
    reads, costs = Reads(), Costs()
    costs.took(RERANK, 3, 0.5)
    late = ranking()
    assert not reranker(reads, costs).rerank(late, ask(until=time.perf_counter() + 0.2))
    assert late.reasons == {"reader": "deadline"} and not reads.asked
    assert late.scores.tolist() == [6, 5, 4, 3, 2, 1]
    enough = ranking()
    assert reranker(reads, costs).rerank(enough, ask(until=time.perf_counter() + 60))
    reads.away = "down"
    away = ranking()
    assert not reranker(reads, costs).rerank(away, ask()) and away.reasons == {"reader": "down"}

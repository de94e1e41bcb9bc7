from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.retrieval import vector
from raysys.retrieval.vector import VectorIndex


def unit(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_finds_the_nearest_exactly_while_few() -> None:
    vectors, queries = unit(500), unit(20, seed=1)
    index = VectorIndex.build(vectors)
    for query in queries:
        expected = np.argsort(-(vectors @ query))[:10]
        found = index.find(query, 10)
        assert found.rows.tolist() == expected.tolist()
        np.testing.assert_allclose(found.scores, (vectors @ query)[expected], rtol=1e-6)


def test_equal_vectors_are_kept_once() -> None:
    vectors = unit(4)[[2, 0, 2, 1, 0]]
    index = VectorIndex.build(vectors)
    assert index.row_of_item.tolist() == [0, 1, 0, 2, 1]
    assert len(index.vectors) == 3
    assert index.find(vectors[3], 1).rows.tolist() == [2]


def test_a_graph_beyond_the_limit_finds_nearly_all() -> None:
    vectors, queries = unit(3000, 32), unit(50, 32, seed=1)
    exact, graph = VectorIndex.build(vectors), VectorIndex.build(vectors, exact_up_to=1000)
    hits = sum(
        len(set(exact.find(query, 10).rows.tolist()) & set(graph.find(query, 10).rows.tolist()))
        for query in queries
    )
    assert hits >= 0.98 * 500


@pytest.mark.parametrize("exact_up_to", [10, 1000])
def test_survives_saving(tmp_path: Path, exact_up_to: int) -> None:
    index = VectorIndex.build(unit(200), exact_up_to=exact_up_to)
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path)
    for query in unit(10, seed=3):
        before, after = index.find(query, 20), again.find(query, 20)
        assert before.rows.tolist() == after.rows.tolist()
        assert before.scores.tolist() == after.scores.tolist()


def test_no_vectors_find_nothing() -> None:
    index = VectorIndex.build(np.empty((0, 8), np.float32))
    assert len(index.find(np.ones(8, np.float32), 5)) == 0


def test_a_query_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        VectorIndex.build(unit(10)).find(np.ones(3, np.float32), 5)


@pytest.mark.parametrize("exact_up_to", [10, 10_000])
def test_many_queries_find_what_each_finds(exact_up_to: int) -> None:
    vectors = unit(2_000, 16, seed=3)
    index = VectorIndex.build(vectors, exact_up_to=exact_up_to)
    queries = unit(1_100, 16, seed=4)
    rows, scores = index.find_many(queries, 5)
    for at in range(0, 1_100, 50):
        hits = index.find(queries[at], 5)
        assert rows[at].tolist() == hits.rows.tolist()
        np.testing.assert_allclose(scores[at], hits.scores, atol=1e-5)


def test_one_thread_makes_the_same_graph_of_the_same_vectors() -> None:
    vectors, queries = unit(3_000, 48, seed=3), unit(200, 48, seed=4)
    rows, again = (
        VectorIndex.build(vectors, exact_up_to=10, threads=1).find_many(queries, 40)[0]
        for _ in range(2)
    )
    assert (rows == again).all()


def test_many_queries_are_compared_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = VectorIndex.build(unit(500)), unit(90, seed=1)
    whole = index.find_many(queries, 7)
    monkeypatch.setattr(vector, "_SCORES", 5_300)  # ten queries at a time
    parts = index.find_many(queries, 7)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)


def test_many_queries_for_more_than_there_is() -> None:
    index = VectorIndex.build(unit(3, 8))
    rows, scores = index.find_many(unit(2, 8, seed=1), 5)
    assert rows.shape == scores.shape == (2, 5)
    assert (rows[:, 3:] == -1).all() and (scores[:, 3:] == 0).all()
    assert sorted(rows[0, :3].tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="queries of shape"):
        index.find_many(unit(2, 4), 5)

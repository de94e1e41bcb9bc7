from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from raysys.retrieval.allowed import Allowed
from raysys.retrieval.lexical import words
from raysys.retrieval.search import Search

TEXTS = ["whole milk", "skimmed milk", "whole milk", "soy drink", "dog biscuits", "whole milk"]


class Hashed:
    """Words hashed into 256 dimensions: a text encoder without weights."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.item_vectors = self.encode(texts)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.full((len(texts), 256), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in words(text):
                vectors[row, zlib.crc32(word.encode()) % 256] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def search() -> Search:
    return Search.build(TEXTS, Hashed(TEXTS))


def test_items_of_one_text_are_equally_relevant_and_ordered_by_the_prior(search: Search) -> None:
    search.set_prior(np.array([1, 9, 5, 9, 9, np.nan], np.float32))
    found = search.find("whole milk", 3)
    assert found.items.tolist() == [2, 0, 5]
    assert found.relevance.tolist() == [1, 1, 1]
    assert found.by_words.all() and found.by_meaning.all()


def test_words_alone_without_an_encoder() -> None:
    search = Search.build(TEXTS)
    assert set(search.find("milk", 10).items.tolist()) == {0, 1, 2, 5}
    assert len(search.find("unknown", 10)) == 0
    assert not search.find("milk", 10).by_meaning.any()


def test_an_encoder_finds_something_for_unknown_words(search: Search) -> None:
    found = search.find("unknown", 10)
    assert len(found) == len(TEXTS) and not found.by_words.any()


def test_only_allowed_items_are_found(search: Search) -> None:
    allowed = Allowed(np.array([False, True, False, False, True, False]))
    assert set(search.find("milk", 10, allowed).items.tolist()) == {1, 4}
    assert len(search.find("milk", 10, Allowed(np.zeros(6, bool)))) == 0


def test_relevance_of_given_items(search: Search) -> None:
    relevance = search.relevance("dog", np.array([0, 4, 3], np.int32))
    assert relevance.argmax() == 1 and relevance[1] == 1
    words_only = Search.build(TEXTS)
    assert words_only.relevance("dog", np.array([0, 4], np.int32)).tolist() == [0, 1]
    assert words_only.relevance("cat", np.array([0, 4], np.int32)).tolist() == [0, 0]


def test_survives_saving(search: Search, tmp_path: Path) -> None:
    search.save(tmp_path)
    again = Search.load(tmp_path, Hashed(TEXTS))
    assert again.find("milk dog", 9).items.tolist() == search.find("milk dog", 9).items.tolist()
    words_only = Search.load(tmp_path, None)
    assert not words_only.find("milk", 9).by_meaning.any()


def test_an_empty_shop() -> None:
    assert len(Search.build([]).find("milk", 5)) == 0


def test_a_query_is_encoded_once(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, asked = search.encoder, []
    assert encoder is not None
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: asked.extend(texts) or encode(texts))
    first = search.find("dog food", 4)
    assert search.find("dog food", 4).relevance.tolist() == first.relevance.tolist()
    assert search.relevance("dog food", np.array([4, 0], np.int32)).argmax() == 0
    search.find("cat food", 4)
    assert asked == ["dog food", "cat food"]


def test_queries_are_remembered_up_to_a_number(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysys.retrieval.search._QUERIES_KEPT", 2)
    for query in ("milk", "dog", "milk", "soy", "dog"):
        search.find(query, 3)
    assert list(search._vectors_of) == ["soy", "dog"]

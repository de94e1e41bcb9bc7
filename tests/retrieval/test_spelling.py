from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.retrieval.lexical import LexicalIndex
from raysys.retrieval.spelling import Spelling

KNOWN = ["", "cheese", "chess", "chocolate", "chocolat", "dog", "food", "walk", "walking", "milk"]
KNOWN += ["牛奶", "42"]


@pytest.fixture(scope="module")
def spelling() -> Spelling:
    numbers = {word: at for at, word in enumerate(KNOWN)}
    return Spelling(numbers, np.array([0, 5, 1, 9, 1, 3, 3, 2, 2, 8, 1, 1]))


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("cheese", ["cheese"]),
        ("chese", ["cheese", "chess"]),  # one letter left out, one changed: the frequent first
        ("cheeese", ["cheese"]),
        ("chcocolate", ["chocolate"]),
        ("choolcate", ["chocolate"]),  # two slips in a long word
        ("mikl", ["milk"]),  # swapped
        ("walks", ["walk", "walking"]),  # one stem
        ("walk", ["walk", "walking"]),
        ("choc", ["chocolate", "chocolat"]),  # being typed
        ("dogfood", ["dog", "food"]),
        ("xyz", []),
        ("mlk", []),  # too short for slips
        ("43", []),  # another number is another thing
        ("", []),
        ("牛", []),
        ("\U0010ffff", []),
    ],
)
def test_what_a_word_may_mean(spelling: Spelling, word: str, meant: list[str]) -> None:
    assert spelling.words_of(spelling.meant(word)) == meant


def test_itself_counts_most_and_a_slip_least(spelling: Spelling) -> None:
    ((itself, stem),) = spelling.meant("walk")
    assert itself[1] == 1 > stem[1] > spelling.meant("mikl")[0][0][1]
    assert spelling.meant("choolcate")[0][0][1] < spelling.meant("chcocolate")[0][0][1]


TEXTS = ["gouda cheese slices", "chess board", "dog food dry", "milk chocolate", "cheese cake"]


def test_a_search_forgives_slips_and_says_so(tmp_path: Path) -> None:
    index = LexicalIndex.build(TEXTS)
    assert set(index.find("gouda cheeze", 5).rows[:1].tolist()) == {0}
    assert index.find("dogfood", 5).rows[0] == 2
    assert index.understood("gouda cheeze choco") == {
        "cheeze": ["cheese"],
        "choco": ["chocolate"],
    }
    index.save(tmp_path)
    again = LexicalIndex.load(tmp_path)
    assert (
        again.find("gouda cheeze", 5).rows.tolist() == index.find("gouda cheeze", 5).rows.tolist()
    )


def test_of_several_meanings_a_text_counts_its_best() -> None:
    index = LexicalIndex.build(["walking walk", "walk other", "walking other"])
    scores = index.scores("walk")
    assert scores is not None and scores[0] < scores[1] * 1.5


def test_words_in_the_title_count_more() -> None:
    texts = ["apple juice, drinks", "drinks maker, apple"]
    titles = ["apple juice", "drinks maker"]
    plain = LexicalIndex.build(texts).scores("apple")
    fields = LexicalIndex.build(texts, {"title": titles}).scores("apple")
    assert plain is not None and plain[0] == plain[1]
    assert fields is not None and fields[0] > fields[1] > 0
    with pytest.raises(KeyError):
        LexicalIndex.build(texts, {"colour": titles})

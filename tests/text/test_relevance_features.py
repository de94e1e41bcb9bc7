"""Words of shop texts and what is said of a pair without labels."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from raysys.text import shop_words
from raysys.text.pairs import Pairs, Scale, mean_ndcg, ndcg_by_query
from raysys.text.relevance_features import WORD_FEATURES, PairFeatures
from raysys.text.shop_words import Spelling, plain_words, stems

TITLES = (
    "Toro 22 in. Gas Lawn Mower with Briggs Engine",
    "Behr Premium Deck Over Coating 1-gal.",
    "Honda 21 in. Gas Mower",
    "Lawn Mower Blade for Toro 22-Inch",
    "Delta Shower Faucet Trim Kit in Chrome",
    "3/4 in. x 8 ft. MDF Casing",
    "Gas Mower Oil 18 oz.",
    "Deck Brush with Handle",
)


def pairs(*rows: tuple[str, str]) -> Pairs:
    query, text = zip(*rows, strict=True)
    return Pairs.of(pa.table({"query": query, "text": text}))


def letters(texts: object) -> npt.NDArray[np.float32]:
    """Unit vectors of letter counts: an encoder that anyone can check."""
    found = np.array([[text.lower().count(c) for c in "abcdefghijklmnoprstuvwxyz"]
                      for text in texts], np.float32)  # type: ignore[attr-defined]  # fmt: skip
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def learned() -> PairFeatures:
    return PairFeatures.learn(
        pairs(("gas mower", TITLES[0]), ("deck paint", TITLES[1])),
        TITLES * 3,
        factors=0,
        encode=letters,
    )


def column(features: PairFeatures, name: str, *rows: tuple[str, str]) -> list[float]:
    return features.of(pairs(*rows))[:, features.names.index(name)].tolist()


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(shop_words).failed == 0


@pytest.mark.parametrize(
    "texts",
    [
        ('4" pipe', "4 inch pipe", "4-in. pipe", "4in pipe", "4 Inches pipe"),
        ("8' x 10'", "8 ft. x 10 ft.", "8ft by 10ft", "8 foot * 10 feet"),
        ("1.9 cu. ft.", "1.9 cubic feet", "1.9-cu ft", "1.9 cuft"),
        ("5 gal bucket", "5-gallon bucket", "5 GALLONS bucket"),
        ("100w bulb", "100-Watt bulb", "100 watts bulb"),
        ("2x4", "2 x 4", "2 by 4", "2×4"),
        ("Briggs &amp; Stratton", "briggs & stratton"),
    ],
)
def test_the_same_thing_is_written_one_way(texts: tuple[str, ...]) -> None:
    assert len({tuple(plain_words(text)) for text in texts}) == 1


def test_chinese_is_read_sign_by_sign() -> None:
    assert plain_words("牛奶 250ml") == ["牛", "奶", "250", "ml"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_and_read_again_alike(text: str) -> None:
    found = plain_words(text)
    assert all(word and word == word.strip() for word in found)
    assert len(stems(found)) == len(found)


def test_spelling_prefers_near_then_frequent_words() -> None:
    spelling = Spelling({"paint": 9, "pain": 3, "paints": 50, "pants": 60, "rare": 1})
    assert spelling.corrected(["piant"]) == ["paint"]  # one swap beats frequency
    assert spelling.corrected(["paimts"]) == ["paints"]
    assert spelling.corrected(["pain", "rarr", "xyz", "p4int"]) == ["pain", "rarr", "xyz", "p4int"]


def test_coverage_and_place_by_hand(learned: PairFeatures) -> None:
    row = ("gas mowre", TITLES[0])
    assert column(learned, "coverage", row, ("gas pipe", TITLES[0])) == [1.0, 0.5]
    assert column(learned, "corrected", row) == [1.0]
    typed = column(learned, "coverage_typed_idf", row)[0]
    gas, unknown = learned.idf("gas"), learned.idf("mowr")
    assert typed == pytest.approx(gas / (gas + unknown))
    assert column(learned, "last_word_at_end", row) == [1.0]  # "mower" ends the head
    assert column(learned, "pair_coverage", ("lawn mower", TITLES[0]), row) == [1.0, 0.0]
    assert column(learned, "longest_run", ("gas lawn mower", TITLES[0])) == [1.0]
    head = column(learned, "head_coverage_idf", ("toro", TITLES[0]), ("toro", TITLES[3]))
    assert head == [1.0, 0.0]  # there it stands behind "for"


def test_numbers_and_sizes(learned: PairFeatures) -> None:
    rows = (('22" mower', TITLES[0]), ('21" mower', TITLES[0]), ("22 ft mower", TITLES[0]))
    assert column(learned, "numbers_coverage", *rows) == [1.0, 0.0, 1.0]
    assert column(learned, "sizes_coverage", *rows) == [1.0, 0.0, 0.0]
    assert math.isnan(column(learned, "numbers_coverage", ("mower", TITLES[0]))[0])


def test_bm25_by_hand(learned: PairFeatures) -> None:
    found = column(learned, "bm25", ("deck", TITLES[7]))[0]
    n, df = len(TITLES), 2
    idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
    length = np.mean([len(plain_words(title)) for title in TITLES])
    assert found == pytest.approx(idf * 2.2 / (1 + 1.2 * (0.6 + 0.4 * 4 / length)), rel=1e-5)


def test_cosines_and_their_place_in_the_crowd(learned: PairFeatures) -> None:
    row = ("gas mower", TITLES[2])
    all_of_them = letters(sorted(TITLES)) @ letters(["gas mower"])[0]
    own = float(letters([TITLES[2]])[0] @ letters(["gas mower"])[0])
    assert column(learned, "cosine", row)[0] == pytest.approx(own, rel=1e-5)
    above = float(np.mean(all_of_them > own + 1e-6))
    assert column(learned, "cosine_place", row)[0] == pytest.approx(above, abs=1e-6)
    assert column(learned, "cosine_behind", row)[0] == pytest.approx(
        own - all_of_them.mean(), abs=1e-5
    )


def test_a_pairs_features_do_not_depend_on_the_others(learned: PairFeatures) -> None:
    rows = [(query, title) for query in ("gas mower", "deck over", "x") for title in TITLES]
    together = learned.of(pairs(*rows))
    alone = np.concatenate([learned.of(pairs(row)) for row in rows])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert together.shape == (24, len(learned.names)) and together.dtype == np.float32


def test_a_training_query_does_not_know_itself() -> None:
    """How common a word is among queries must look alike for training queries and for new ones."""
    rows = [(f"gas mower {at}", TITLES[0]) for at in range(9)]
    features = PairFeatures.learn(pairs(*rows), factors=0)
    seen, new = column(features, "bm25_item_to_query", rows[0], ("gas mower x", TITLES[0]))
    one, other = (math.log(1 + (m - n + 0.5) / (n + 0.5)) for m, n in ((8, 8), (9, 9)))
    assert seen == pytest.approx(2 * one, rel=1e-5)
    assert new == pytest.approx(2 * other, rel=1e-5)


def test_grades_are_not_read() -> None:
    rows = {"query": ["gas mower", "deck"] * 4, "text": list(TITLES)}
    first, second = (
        PairFeatures.learn(Pairs.of(pa.table({**rows, "grade": grade})), factors=3)
        for grade in (np.arange(8, dtype=np.float32), np.zeros(8, np.float32))
    )
    judged = Pairs.of(pa.table(rows))
    np.testing.assert_array_equal(first.of(judged), second.of(judged))


def test_comes_back_from_a_folder(tmp_path: Path) -> None:
    rows = [(query, title) for query in ("gas mower", "deck over", "1 gal") for title in TITLES]
    features = PairFeatures.learn(pairs(*rows), TITLES * 5, factors=3, encode=letters)
    assert set(features.factors)
    features.save(tmp_path)
    again = PairFeatures.load(tmp_path, letters)
    assert again.names == features.names
    np.testing.assert_array_equal(again.of(pairs(*rows)), features.of(pairs(*rows)))
    assert len(features.names) > len(WORD_FEATURES)


def test_scale() -> None:
    scale = Scale.of(np.array([1, 3, 2.33, 3], np.float32), where="x")
    np.testing.assert_allclose(scale.share(np.array([1, 2, 3, 9], np.float32)), [0, 0.5, 1, 1])
    np.testing.assert_allclose(scale.grade(np.array([0, 0.5, 2], np.float32)), [1, 2, 3])
    assert scale.level(np.array([1.1, 2.4, 3], np.float32)).tolist() == [0, 1, 2]
    halves = Scale((1.0, 2.0, 4.0))
    grade = np.concatenate([np.linspace(0, 5, 101), [1.5, 3]]).astype(np.float32)
    nearest = np.abs(grade[:, None] - np.array(halves.levels)[None, :]).argmin(1)
    assert halves.level(grade).tolist() == nearest.tolist()


def test_grades_that_are_measured_have_a_level_each() -> None:
    grade = np.random.default_rng(0).permutation(50_000).astype(np.float32)
    assert Scale.of(grade, where="x").level(grade).tolist() == grade.tolist()


def test_ndcg_by_hand() -> None:
    gain = np.array([2, 0, 1, 0, 0], np.float32)
    query = np.array([7, 7, 7, 3, 3])
    scores = np.array([0.1, 0.9, 0.5, 1, 2], np.float32)
    names, values = ndcg_by_query(scores, gain, query)
    ideal = 2 + 1 / math.log2(3)
    assert names.tolist() == [3, 7]
    assert math.isnan(values[0])
    assert values[1] == pytest.approx((1 / math.log2(3) + 2 / 2) / ideal)
    assert mean_ndcg(scores, gain, query) == pytest.approx(values[1])
    for rows in ([0, 1, 2, 3, 4], [1, 0, 2, 4, 3], [2, 1, 0, 3, 4]):  # nobody knows which is first
        at = np.array(rows)
        same = mean_ndcg(np.ones(5, np.float32), gain[at], query[at])
        assert same == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / ideal)


@pytest.mark.long
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99)), min_size=2, max_size=25))
def test_ndcg_is_scikit_learns(rows: list[tuple[int, int]]) -> None:
    from sklearn.metrics import ndcg_score

    gain, score = (np.array(each, np.float32) for each in zip(*rows, strict=True))
    score = rankdata(score + np.arange(len(score)) * 1e-3).astype(np.float32)  # no ties
    found = mean_ndcg(score, gain, np.zeros(len(gain), np.int64))
    assert found == pytest.approx(ndcg_score([gain], [score], k=10), abs=1e-6)

"""Grades in words: which scale a file's words are of, and what is refused."""

from __future__ import annotations

import itertools

import pytest

from raysys.datasets.grades import SCALES, Grades, grades_of, spelled_out
from raysys.errors import UserError


def found(*words: str) -> dict[str, float]:
    return grades_of(dict.fromkeys(words, 1), where="a.csv: label").numbers


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("E S C I", (1, 0.1, 0.01, 0)),
        ("Exact Substitute Complement Irrelevant", (1, 0.1, 0.01, 0)),
        ("Exact Substitute Irrelevant", (1, 0.1, 0)),
        ("Irrelevant Partial Exact", (0, 1, 2)),
        ("Not_Relevant PARTIALLY-RELEVANT relevant.", (0, 1, 2)),
        ("not-relevant relevant highly-relevant", (0, 1, 2)),
        ("irrelevant somewhat_relevant relevant highly_relevant", (0, 1, 2, 3)),
        ("irrelevant related highly_relevant perfectly_relevant", (0, 1, 2, 3)),
        ("not_relevant relevant", (0, 1)),
        ("Bad Fair Good Excellent Perfect", (0, 1, 2, 3, 4)),
        ("poor fair good excellent", (0, 1, 2, 3)),
        ("Bad Good Perfect", (0, 2, 4)),
        ("low medium high", (0, 1, 2)),
        ("High LOW", (1, 0)),
        ("no yes", (0, 1)),
        ("FALSE yes true", (0, 1, 1)),
        ("bad good", (0, 1)),
    ],
)
def test_words_of_known_scales(words: str, numbers: tuple[float, ...]) -> None:
    taken = found(*words.split())
    assert tuple(taken[word] for word in words.split()) == numbers


def test_scales_agree_about_the_order_of_their_words() -> None:
    for one, other in itertools.combinations(SCALES, 2):
        first, second = one.numbers(), other.numbers()
        both = sorted(first.keys() & second.keys())
        for a, b in itertools.combinations(both, 2):
            assert (first[a] - first[b]) * (second[a] - second[b]) >= 0, (one.name, other.name, a)


def test_the_official_gains_are_named() -> None:
    assert "KDD" not in grades_of({"E": 1, "I": 2, "S": 1}, where="x").scale
    assert "substitute 0.1" in grades_of({"E": 1, "I": 2, "S": 1}, where="x").scale


def test_numbers_before_words_are_taken() -> None:
    assert found("0 - off", "1: near", "2.5 (right)") == {
        "0 - off": 0,
        "1: near": 1,
        "2.5 (right)": 2.5,
    }
    with pytest.raises(UserError, match="no numbers"):
        found("0 - off", "near")


def test_unknown_words_are_told_with_their_counts() -> None:
    with pytest.raises(UserError, match=r"(?s)'Meh' 7, 'Irelevant' 2.*'irrelevant'.*--grades"):
        grades_of({"Irelevant": 2, "Meh": 7}, where="a.csv: label")
    many = {f"word {number}": 1 for number in range(40)}
    with pytest.raises(UserError, match="and 28 others"):
        grades_of(many, where="a.csv: label")


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        (["Meh < Wow"], {"meh": 0, "WOW!": 1}),
        (["Meh", "Fine", "Wow"], {"meh": 0, "WOW!": 2}),
        (["Meh = 0.5 < Wow=4"], {"Meh": 0.5, "wow": 4}),
        (["3 < 2 < 1"], {"1": 2, "3.0": 0}),
    ],
)
def test_words_may_be_spelled_out(given: list[str], numbers: dict[str, float]) -> None:
    scale = spelled_out(given)
    assert grades_of(dict.fromkeys(numbers, 1), scale, where="x") == Grades(scale.name, numbers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["Meh"], "no order of words"),
        (["Meh < "], "no order of words"),
        (["Meh < meh"], "twice"),
        (["a = 1 < b"], "no number"),
        (["a = 1 < b = 0"], "numbers fall"),
        (["a = 1 < b = nan"], "numbers fall"),
    ],
)
def test_orders_that_say_nothing_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spelled_out(given)


def test_a_word_that_the_order_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="'Fine' 2, 'Meh' 1"):
        grades_of({"Meh": 1, "Fine": 2}, spelled_out(["Meh < Wow"]), where="x")


def test_words_are_told_from_the_lowest_whatever_the_rows_order() -> None:
    counts = {"Partial": 7, "Exact": 7, "irrelevant": 7, "Irrelevant": 7}
    for words in (list(counts), list(counts)[::-1]):
        found = grades_of({word: counts[word] for word in words}, where="file")
        assert list(found.numbers) == ["Irrelevant", "irrelevant", "Partial", "Exact"]

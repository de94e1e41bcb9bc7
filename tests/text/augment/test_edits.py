"""Draws, words, and what dropout, swap and slips may and may not do."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.retrieval import segmentation
from raysys.text.augment.draws import choose, derived, keys_of, uniform
from raysys.text.augment.edits import neighbours_of, spelling_noise, word_dropout, word_swap
from raysys.text.augment.settings import LAYOUTS, Augmentation, SpellingNoise
from raysys.text.augment.words import Words

LETTERS = st.text(st.sampled_from("abcdeABCDEäßéñжд手机很好ไท 019-/,.()"), max_size=40)
TEXTS = st.lists(st.one_of(st.none(), LETTERS), min_size=1, max_size=8)
ANY_TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=8)
STRENGTH = st.floats(0.01, 1.0)


def words_of(texts: list[str | None]) -> Words:
    return Words.of(pl.Series("text", texts, dtype=pl.String))


def keys(n: int, seed: int = 0) -> np.ndarray:
    return keys_of(np.arange(n), seed, "test")


def pieces(text: str | None) -> list[str]:
    return words_of([text]).word.to_list()


# draws


def test_draws_are_even_and_independent_of_what_is_beside() -> None:
    all_keys = keys_of(np.arange(20_000), 7, "crop", 0)
    draws = uniform(all_keys)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees, p = 0.001
    second = uniform(all_keys, 1)
    assert abs(np.corrcoef(draws, second)[0, 1]) < 0.025
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.025
    np.testing.assert_array_equal(uniform(all_keys[[5, 17_000]]), draws[[5, 17_000]])


def test_keys_are_the_same_in_every_version() -> None:
    """Written down: a change here changes everybody's copies."""
    assert keys_of(np.array([0, 1, -1]), 0, "crop", 0).tolist() == NUMBER_KEYS
    assert keys_of(pl.Series(["", "sofa", "手机", None]), 3, "mask").tolist() == TEXT_KEYS


NUMBER_KEYS = [17360729112678370422, 5338845186074156225, 3526319391067020585]
TEXT_KEYS = [16612389658001841618, 9945202498295748639, 6363756155451901782, 7612070403122998946]


def test_seed_method_copy_and_purpose_give_other_keys() -> None:
    ids = np.arange(100)
    many = [
        keys_of(ids, 0, "crop", 0), keys_of(ids, 1, "crop", 0), keys_of(ids, 0, "mask", 0),
        keys_of(ids, 0, "crop", 1), derived(keys_of(ids, 0, "crop", 0), "start"),
    ]  # fmt: skip
    assert len(np.unique(np.concatenate(many))) == 500


def test_text_keys_do_not_depend_on_the_slice() -> None:
    texts = pl.Series(["a", "bb", None, "ccc", "", "手机"])
    np.testing.assert_array_equal(keys_of(texts, 1)[2:5], keys_of(texts.slice(2, 3), 1))
    np.testing.assert_array_equal(keys_of(texts.reverse(), 1)[::-1], keys_of(texts, 1))


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), STRENGTH, st.integers(0, 1), st.data())
def test_a_share_is_chosen_and_at_least_one(
    sizes: list[int], strength: float, spare: int, data: st.DataObject
) -> None:
    row = np.repeat(np.arange(len(sizes)), sizes)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))))
    eligible = eligible.astype(bool)
    draws = uniform(keys(len(sizes))[row], np.arange(len(row)))
    chosen = choose(row, draws, eligible, strength, spare)
    assert not (chosen & ~eligible).any()
    for at, size in enumerate(sizes):
        many = int(eligible[row == at].sum())
        wanted = min(max(1, round(strength * many)), size - spare) if many else 0
        assert chosen[row == at].sum() == min(wanted, many)


# words


@settings(deadline=None)
@given(TEXTS)
@example(["  手机壳 iPhone很好!  ", None, "", " "])
def test_a_text_comes_back_as_it_was(texts: list[str | None]) -> None:
    assert words_of(texts).texts().to_list() == [(text or "").strip() for text in texts]


@settings(deadline=None)
@given(ANY_TEXTS)
def test_any_unicode_comes_back(texts: list[str]) -> None:
    joined = words_of(texts).texts().to_list()
    assert ["".join(text.split()) for text in joined] == ["".join(t.split()) for t in texts]


def test_what_a_word_is() -> None:
    assert pieces("Strong-Tie 12-Gauge  (ok)") == ["Strong-Tie", "12-Gauge", "(ok)"]
    assert pieces("手机壳iPhone很好") == ["手机", "壳", "iPhone", "很", "好"]
    found = words_of(["sofa 64gb MQ8N2B/A a@b.c www.x/y blue_1 三 x²"])
    assert found.identifier.tolist() == [False, True, True, True, True, True, False, True]


# dropout and swap


@pytest.mark.long
@settings(deadline=None)
@given(TEXTS, STRENGTH)
def test_dropout_keeps_order_ids_and_one_word(texts: list[str | None], strength: float) -> None:
    words = words_of(texts)
    dropped = word_dropout(words, keys(len(texts)), strength)
    for row in range(len(texts)):  # as they were cut: 好A好 without its A is one word
        had, has = words.row == row, dropped.word.filter(pl.Series(dropped.row == row)).to_list()
        rest = iter(words.word.filter(pl.Series(had)).to_list())
        assert all(word in rest for word in has)  # a subsequence
        kept = Counter(words.word.filter(pl.Series(had & words.identifier)).to_list())
        assert not kept - Counter(has)
        assert len(has) == 0 if not had.any() else len(has) >= 1
        if had.sum() > 1 and not words.identifier[had].all():
            assert len(has) < had.sum()
        joined = "".join("".join(has).split())
        assert "".join((dropped.texts()[row] or "").split()) == joined


def test_numbers_do_not_run_together() -> None:
    """Where a character between them goes: 5 and 3 are not 53."""
    texts = ["5折3天"] * 40
    for edit in (word_dropout, word_swap):
        changed = edit(words_of(texts), keys(40), 0.5).texts()
        numbers = changed.str.extract_all(r"\d+").to_list()
        assert all(sorted(found) == ["3", "5"] for found in numbers)
        assert changed.n_unique() > 1


@settings(deadline=None)
@given(TEXTS, STRENGTH)
def test_swap_moves_each_word_by_one_place_at_most(
    texts: list[str | None], strength: float
) -> None:
    words = words_of(texts)
    swapped = word_swap(words, keys(len(texts)), strength)
    for row in range(len(texts)):
        before = words.word.filter(pl.Series(words.row == row)).to_list()
        after = swapped.word.filter(pl.Series(words.row == row)).to_list()
        assert Counter(before) == Counter(after)
        at, pairs = 0, 0
        while at < len(before):
            if before[at] == after[at]:
                at += 1
            else:
                assert before[at : at + 2] == after[at : at + 2][::-1]
                at, pairs = at + 2, pairs + 1
        if len(set(before)) == len(before) >= 2:
            assert 1 <= pairs <= max(1, round(strength * (len(before) - 1)))


def test_how_much_is_dropped() -> None:
    text = " ".join(["word"] * 50)
    for strength in (0.1, 0.3, 0.9):
        left = word_dropout(words_of([text]), keys(1), strength)
        assert len(left) == 50 - round(50 * strength)


# slips


def edit_distance(a: str, b: str) -> int:
    """Damerau–Levenshtein, optimal string alignment."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0, :] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            cost = a[i - 1] != b[j - 1]
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + cost)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return int(table[-1, -1])


@settings(deadline=None)
@given(TEXTS, STRENGTH, st.integers(0, 50))
@example(["comfortable Leather SOFA's", "(phones)", "手机iPhone好"], 1.0, 0)
def test_a_slip_is_one_error_in_a_long_word_without_digits(
    texts: list[str | None], strength: float, seed: int
) -> None:
    words = words_of(texts)
    noisy = spelling_noise(words, keys(len(texts), seed), SpellingNoise(strength=strength))
    pairs = list(zip(words.word, noisy.word, words.identifier, strict=True))
    for before, after, identifier in pairs:
        if before != after:
            assert not identifier and edit_distance(before, after) == 1
            if segmentation.RUN.fullmatch(before):
                assert len(before) >= 2
            else:
                assert sum(letter.isalpha() for letter in before) >= 4
                assert before[0] == after[0]


@pytest.mark.parametrize(
    ("slip", "found"),
    [
        ("neighbour", {"caeble", "cwble", "cqble", "csble", "czble", "cavle", "cagle", "cahle",
                       "canle", "cabke", "cabpe", "cabme", "cabie", "caboe"}),
        ("transposition", {"cbale", "calbe", "cabel"}),
        ("doubling", {"caable", "cabble", "cablle"}),
        ("omission", {"cble", "cale", "cabe"}),
    ],
)  # fmt: skip
def test_each_slip(slip: str, found: set[str]) -> None:
    rates = dict.fromkeys(("neighbour", "transposition", "doubling", "omission"), 0.0)
    settings = SpellingNoise(strength=1, **{**rates, slip: 1.0})
    n = 300
    noisy = set(spelling_noise(words_of(["cable"] * n), keys(n), settings).word)
    assert noisy <= found and len(noisy) >= 3
    if slip != "neighbour":
        assert noisy == found


def test_slips_keep_case_and_rates() -> None:
    settings = SpellingNoise(strength=1, transposition=0, doubling=0, omission=0)
    noisy = spelling_noise(words_of(["SOFA"] * 50), keys(50), settings).word
    assert all(word.isupper() for word in noisy)
    n = 4000
    mixed = spelling_noise(words_of(["cable"] * n), keys(n), SpellingNoise(strength=1, omission=3))
    shorter = sum(len(word) < 5 for word in mixed.word) / n
    assert shorter == pytest.approx(0.5, abs=0.03)


def test_layouts() -> None:
    qwerty = neighbours_of(LAYOUTS["qwerty"])
    assert set(qwerty["g"]) == set("ftyhvb")
    assert set(neighbours_of(LAYOUTS["qwertz"])["t"]) == set("rzfg")
    for rows in LAYOUTS.values():
        beside = neighbours_of(rows)
        for key, near in beside.items():
            assert all(key in beside[other] for other in near if key.isalpha())
    own = SpellingNoise(strength=1, layout=("йцукен", "фывапр"), transposition=0, doubling=0,
                        omission=0)  # fmt: skip
    noisy = set(spelling_noise(words_of(["цена"] * 60), keys(60), own).word)
    assert all(edit_distance("цена", word) == 1 and len(word) == 4 for word in noisy)


def test_a_letter_that_the_keyboard_lacks_is_doubled() -> None:
    only = SpellingNoise(strength=1, transposition=0, doubling=0, omission=0)
    assert set(spelling_noise(words_of(["ждфж"] * 20), keys(20), only).word) <= {"жддфж", "ждффж"}


# settings


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"methods": [{"kind": "word_swop"}]}, "word_swap"),
        ({"methods": [{"kind": "word_swap", "strenght": 1}]}, "did you mean 'strength'"),
        ({"methods": [{"kind": "word_swap"}, {"kind": "word_swap"}]}, "word_swap twice"),
        ({"methods": [{"kind": "crop", "strength": 1.5}]}, "less than 1"),
        ({"methods": [{"kind": "back_translation", "temperature": 1}]}, "needs `beams: 1`"),
        (
            {"methods": [{"kind": "spelling_noise", "neighbour": 0, "transposition": 0,
                          "doubling": 0, "omission": 0}]},
            "are all 0",
        ),
        ({"copies": 0}, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(content: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_settings(Augmentation, content, where="test")


def test_off_by_default() -> None:
    assert not Augmentation()
    again = Augmentation(**Augmentation(methods=({"kind": "crop"},)).model_dump(mode="json"))
    assert again and again.history_methods[0].kind == "crop" and not again.text_methods

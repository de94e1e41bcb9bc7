"""Words left out, words that trade places, letters that slip.

Dropout and swap are "random deletion" and a gentle "random swap" of EDA (Wei and Zou 2019,
arXiv:1901.11196): a share of a text's words, at least one. Slips are the four single errors that
Damerau (1964, doi:10.1145/363958.363994) found behind most misspellings, a wrong letter being a
neighbour on the keyboard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from raysys.retrieval.segmentation import HAN
from raysys.text.augment.draws import Bool, UInt64, choose, derived, uniform
from raysys.text.augment.settings import SpellingNoise
from raysys.text.augment.words import Words

SHORTEST = 4
"""Letters of a word that slips may happen in: of three letters one slip leaves another word."""
_LETTERS = rf"[{HAN}]{{2,}}|\p{{L}}{{{SHORTEST},}}"


def word_dropout(words: Words, keys: UInt64, strength: float) -> Words:
    """Leave words out; one of each text stays, and so does every identifier.

    Args:
        words: of n texts.
        keys: uint64[n].
        strength: share of the words.
    """
    draws = uniform(keys[words.row], words.place)
    return words.kept(~choose(words.row, draws, ~words.identifier, strength, spare=1))


def word_swap(words: Words, keys: UInt64, strength: float) -> Words:
    """Let neighbours trade places, each word at most once; see `word_dropout`."""
    row = words.row
    followed = np.zeros(len(words), dtype=bool)
    followed[:-1] = row[1:] == row[:-1]
    draws = uniform(keys[row], words.place)
    chosen = choose(row, draws, followed, strength)
    # of chosen places side by side only the one with the smallest draw swaps
    before, after = np.full(len(words), np.inf), np.full(len(words), np.inf)
    before[1:] = np.where(chosen[:-1] & (row[1:] == row[:-1]), draws[:-1], np.inf)
    after[:-1] = np.where(chosen[1:] & (row[1:] == row[:-1]), draws[1:], np.inf)
    first = np.flatnonzero(chosen & (draws < before) & (draws < after))
    order = np.arange(len(words))
    order[first], order[first + 1] = first + 1, first.copy()
    return words.with_words(words.word.gather(order))


def spelling_noise(words: Words, keys: UInt64, settings: SpellingNoise) -> Words:
    """Let one letter slip in each chosen word; see `word_dropout`.

    Words with a digit (model numbers, sizes) and short words stay. The first letter stays: writers
    seldom miss it (Pollock and Zamora 1984, doi:10.1145/358027.358048). Chinese words have few
    signs: two suffice, and the first may slip as well.
    """
    eligible = ~words.identifier & words.word.str.contains(_LETTERS).to_numpy()
    draws = uniform(derived(keys, "word")[words.row], words.place)
    chosen = choose(words.row, draws, eligible, settings.strength)
    at = np.flatnonzero(chosen)
    if not len(at):
        return words
    own, place = keys[words.row[at]], words.place[at]
    word = words.word.gather(at)
    parts = word.str.extract_groups(rf"^(.*?)({_LETTERS})(.*)$").struct
    middle = parts.field("2")
    length = middle.str.len_chars().to_numpy().astype(np.int64)
    # the letter that slips: never the first, and one that has a next where places are traded
    kept = (~middle.str.contains(rf"^[{HAN}]").to_numpy()).astype(np.int64)
    spot = kept + (uniform(derived(own, "letter"), place) * (length - 1 - kept)).astype(np.int64)
    rates = np.cumsum([settings.neighbour, settings.transposition, settings.doubling])
    total = rates[-1] + settings.omission
    slip = np.searchsorted(rates / total, uniform(derived(own, "slip"), place), side="right")
    frame = pl.DataFrame(
        {
            "before": parts.field("1"), "middle": middle, "after": parts.field("3"),
            "spot": spot, "slip": slip,
        }
    ).with_columns(
        head=pl.col("middle").str.slice(0, pl.col("spot")),
        letter=pl.col("middle").str.slice(pl.col("spot"), 1),
        next=pl.col("middle").str.slice(pl.col("spot") + 1, 1),
        tail=pl.col("middle").str.slice(pl.col("spot") + 1),
    )  # fmt: skip
    hit = _neighbours(frame["letter"], uniform(derived(own, "key"), place), settings.rows)
    slipped = pl.concat_str(
        "before",
        "head",
        pl.when(pl.col("slip") == 0)
        .then(pl.coalesce(hit, pl.col("letter") + pl.col("letter")) + pl.col("tail"))
        .when(pl.col("slip") == 1)
        .then(pl.col("next") + pl.col("letter") + pl.col("tail").str.slice(1))
        .when(pl.col("slip") == 2)
        .then(pl.col("letter") + pl.col("letter") + pl.col("tail"))
        .otherwise(pl.col("tail")),
        "after",
    )
    return words.with_words(_scattered(words.word, chosen, frame.select(slipped).to_series()))


def neighbours_of(rows: Sequence[str]) -> dict[str, str]:
    """The keys beside each key: in its row, and at half a key's distance above and below.

    >>> neighbours_of(("qwertyuiop", "asdfghjkl", "zxcvbnm"))["s"]
    'adwezx'
    """
    beside: dict[str, str] = {}
    for y, line in enumerate(rows):
        for x, key in enumerate(line):
            places = [
                (y, x - 1),
                (y, x + 1),
                (y - 1, x),
                (y - 1, x + 1),
                (y + 1, x - 1),
                (y + 1, x),
            ]
            found = [rows[b][a] for b, a in places if 0 <= b < len(rows) and 0 <= a < len(rows[b])]
            beside[key] = "".join(each for each in found if each.isalpha())
    return beside


def _neighbours(letter: pl.Series, draws: np.ndarray, rows: Sequence[str]) -> pl.Series:
    """A key beside each letter, in its case; null where the keyboard does not have the letter."""
    beside = neighbours_of(rows)
    lower = letter.str.to_lowercase()
    near = lower.replace_strict(list(beside), list(beside.values()), default=None)
    frame = pl.DataFrame({"letter": letter, "near": near, "draw": draws})
    pick = pl.col("near").str.slice(
        (pl.col("draw") * pl.col("near").str.len_chars()).floor().cast(pl.Int64), 1
    )
    upper = pl.col("letter") != pl.col("letter").str.to_lowercase()
    picked = pl.when(upper).then(pick.str.to_uppercase()).otherwise(pick)
    known = pl.col("near").str.len_chars() > 0
    return frame.select(pl.when(known).then(picked).alias("hit")).to_series()


def _scattered(words: pl.Series, chosen: Bool, values: pl.Series) -> pl.Series:
    """The words with `values` in the chosen places."""
    place = np.full(len(words), 0, dtype=np.int64)
    place[chosen] = np.arange(len(values))
    new = values.gather(place)
    return pl.select(pl.when(pl.Series(chosen)).then(new).otherwise(words)).to_series()

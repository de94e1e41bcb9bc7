"""Negatives for logs without impressions, and how to undo what sampling does to probabilities.

Three sources, each with inclusion probabilities that are known exactly (`ingest.inclusion`):

- `in_session`: what other sessions touched just before: what was around at that time;
- `popular`: any item, by its popularity to the power of `alpha`;
- `hard`: what retrieval would have offered at ranks within a band, so plausible but not wanted.

They draw independently, so the probability that any of them names an item is 1 - Π (1 - π), and
stands beside each negative. Three ways to use it:

- softmax losses subtract its logarithm from the logits (`corrected_logits`, Yi et al. 2019);
- pointwise losses weigh each negative by its inverse (`inverse_weights`), which restores the
  probabilities whatever the sources;
- where all negatives were kept with one probability, probabilities can be corrected after the
  fit instead (`corrected_probabilities`, He et al. 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit
from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.ingest.inclusion import Pools, draw, draw_evenly, mix, mix_each, split, uniform

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

SOURCES: Final = ("in_session", "popular", "hard")


class NegativeShares(Settings):
    """How negatives are split among the sources; shares are in proportion to their sum.

    Attributes:
        in_session: what other sessions touched just before.
        popular: any item, by popularity.
        hard: what retrieval would have offered.
    """

    in_session: float = Field(0.3, ge=0)
    popular: float = Field(0.4, ge=0)
    hard: float = Field(0.3, ge=0)

    @model_validator(mode="after")
    def _some(self) -> NegativeShares:
        if self.in_session + self.popular + self.hard <= 0:
            raise ValueError("at least one share above 0")
        return self


class NegativeSettings(Settings):
    """How negatives are drawn for logs without impressions.

    Attributes:
        per_positive: negatives for each positive, at most: sources may have fewer, draw one
            twice, draw the same, or draw what the request wanted.
        shares: how they are split among the sources.
        window: of other sessions, the last so many events before the positive are a source.
        alpha: popularity counts to this power: 1 as it is, 0.75 as word2vec does, 0 evenly.
        ranks: first and last rank (from 1) of retrieval's candidates that count as hard. The very
            first are often what the user would have wanted as well.
        seed: of the draws.
    """

    per_positive: int = Field(10, ge=1, le=1000)
    shares: NegativeShares = NegativeShares()
    window: int = Field(100, ge=1, le=10_000)
    alpha: float = Field(0.75, ge=0, le=4)
    ranks: tuple[int, int] = (11, 100)
    seed: int = Field(17, ge=0)

    @model_validator(mode="after")
    def _band(self) -> NegativeSettings:
        if not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ValueError("ranks: the first rank is 1 or more, the last not before it")
        return self

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Negatives from each of `SOURCES`; they add up to `per_positive`."""
        shares = (self.shares.in_session, self.shares.popular, self.shares.hard)
        return split(self.per_positive, shares)


@dataclass(frozen=True)
class Positives:
    """p wanted items, in any order.

    Attributes:
        item: int32[p]; request: int64[p], equal for what one request wanted: none of it becomes
            a negative there; session: int64[p]; time: int64[p], UTC ms.
        name: uint64[p], what the draw is by: a hash of the event's id, say. Positives of one name
            draw alike.
        retrieved: int32[p, k], what retrieval would have offered, best first, -1 beyond the last;
            None: there is no `hard` source.
    """

    item: Int32
    request: Int64
    session: Int64
    time: Int64
    name: npt.NDArray[np.uint64]
    retrieved: Int32 | None = None

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True)
class Touched:
    """What sessions touched, n events in time order.

    Attributes:
        item: int32[n], skipped where below 0; session: int64[n]; time: int64[n], UTC ms.
    """

    item: Int32
    session: Int64
    time: Int64


@dataclass(frozen=True)
class Negatives:
    """m negatives, by positive.

    Attributes:
        positive: int64[m], row of the positive; item: int32[m].
        source: int8[m], index into SOURCES: the first that named it.
        probability: float64[m], in (0, 1], of being named by any source.
        own: float64[p], in [0, 1], the same for each positive itself, had it not been wanted.
    """

    positive: Int64
    item: Int32
    source: npt.NDArray[np.int8]
    probability: Float64
    own: Float64

    def __len__(self) -> int:
        return len(self.positive)


def sample_negatives(
    positives: Positives, touched: Touched, popularity: Float64, settings: NegativeSettings
) -> Negatives:
    """Draw negatives for every positive.

    Draws are by hashes of the positives' names and the seed: neither the order of positives nor
    which others there are changes them. `touched` is read strictly before each positive's moment.

    Args:
        positives: what was wanted.
        touched: the log that the in-session source reads.
        popularity: float64[n_items], ≥ 0, as known before the first positive; items of 0 are
            never drawn by popularity.
        settings: how many, from where.

    Raises:
        ValueError: `touched` is not in time order.
    """
    if len(touched.time) and (np.diff(touched.time) < 0).any():
        raise ValueError("negatives need the log in time order")
    sizes = settings.sizes
    known = np.flatnonzero(popularity > 0)
    weight = popularity[known] ** settings.alpha
    popular = Pools.of(np.zeros(len(known), np.int64), known, weight, 1, sizes[1])
    probability = np.zeros(len(popularity))
    probability[popular.item] = popular.probability
    band = np.full((len(positives), 1), -1, dtype=np.int32)
    if positives.retrieved is not None:
        band = positives.retrieved[:, settings.ranks[0] - 1 : settings.ranks[1]]
        band = band if band.shape[1] else np.full((len(positives), 1), -1, dtype=np.int32)
    wanted = np.lexsort((positives.item, positives.request))
    request = positives.request[wanted]
    keep = touched.item >= 0
    time, item, session = touched.time[keep], touched.item[keep], touched.session[keep]
    return Negatives(
        *_sample(
            *(positives.item.astype(np.int64), positives.session, positives.name),
            np.searchsorted(time, positives.time, side="left"),
            positives.item[wanted].astype(np.int64),
            np.searchsorted(request, positives.request, side="left"),
            np.searchsorted(request, positives.request, side="right"),
            *(item.astype(np.int64), session, popular.item, popular.ends, probability),
            np.ascontiguousarray(band),
            mix_each(np.arange(len(popularity), dtype=np.uint64), np.zeros(1, np.uint64)),
            *(np.uint64(settings.seed), settings.window, *sizes),
        )
    )


def inverse_weights(probability: Float64, clip: float = 100.0) -> npt.NDArray[np.float32]:
    """Weights of negatives in a pointwise loss: float32[n], 1 / probability, at most `clip`.

    Horvitz and Thompson (JASA 1952): weighted so, the sample stands for all that could have been
    drawn, and a probability fitted on it needs no correction. Clipping trades that for variance.
    """
    return np.minimum(1.0 / probability, clip).astype(np.float32)


def corrected_logits(
    logits: npt.NDArray[np.floating], probability: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """Logits for a softmax over a positive and sampled negatives: logits - log(probability).

    The logQ correction (Yi et al., RecSys 2019, eq. 3; Jean et al., ACL 2015): without it the
    softmax learns to score what is drawn often too low. The positive is corrected like the
    negatives, by the probability that it would have been drawn (`Negatives.own`): given the set
    of the positive and what was drawn, that is the likelihood of which one was the positive, as
    long as the probabilities are small: draw few of many items.

    Args:
        logits: float[..., c], scores of the positive and the negatives.
        probability: of the same shape (or one that broadcasts), in (0, 1].
    """
    return logits - np.log(probability)


def corrected_probabilities(
    probability: npt.NDArray[np.floating], kept: npt.ArrayLike
) -> npt.NDArray[np.floating]:
    """Probabilities as they are without downsampling: p / (p + (1 - p) / w).

    He et al. (ADKDD 2014, section 6.3), for a model fitted on all positives and on negatives
    that were kept with probability w.

    Args:
        probability: float[n], what the model says.
        kept: w, in (0, 1]: one number, or one for each row where it is known when scoring too.
    """
    rate = np.asarray(kept, dtype=np.float64)
    return probability / (probability + (1.0 - probability) / rate)


@njit(cache=True)
def _sample(  # type: ignore[no-untyped-def]
    positive_item, positive_session, names, before, wanted, wanted_from, wanted_to,
    item, session, popular_item, popular_ends, probability, band, item_names,
    seed, window, n_session, n_popular, n_hard,
):  # fmt: skip
    n = len(positive_item)
    capacity = n_session + n_popular + n_hard
    out_positive = np.empty(n * capacity, dtype=np.int64)
    out_item = np.empty(n * capacity, dtype=np.int32)
    out_source = np.empty(n * capacity, dtype=np.int8)
    out_probability = np.empty(n * capacity, dtype=np.float64)
    around = np.empty(window, dtype=np.int64)
    hard = np.empty(band.shape[1], dtype=np.int64)
    picked = np.empty(max(capacity, 1), dtype=np.int64)
    named = np.empty(capacity, dtype=np.int64)
    sources = np.empty(capacity, dtype=np.int8)
    own = np.empty(n, dtype=np.float64)
    filled = 0
    for p in range(n):
        key = mix(names[p], seed)
        n_named = 0
        # other sessions' last events; of a session that fills the log, some tenfold are looked at
        n_around = 0
        if n_session:
            for row in range(before[p] - 1, max(-1, before[p] - 1 - 10 * window), -1):
                if n_around == window:
                    break
                if session[row] != positive_session[p]:
                    around[n_around] = item[row]
                    n_around += 1
        near = mix(key, np.uint64(1))
        for pick in range(n_session if n_around else 0):
            at = np.int64(uniform(mix(near, np.uint64(pick))) * n_around)
            named[n_named], sources[n_named] = around[at], 0
            n_named += 1
        popular = mix(key, np.uint64(2))
        count = draw(popular, popular_ends, 0, len(popular_item), n_popular, picked)
        for each in range(count):
            named[n_named], sources[n_named] = popular_item[picked[each]], 1
            n_named += 1
        n_band = 0
        for rank in range(band.shape[1]):
            if band[p, rank] >= 0:
                hard[n_band] = band[p, rank]
                n_band += 1
        share = min(1.0, n_hard / n_band) if n_band else 0.0
        count = draw_evenly(mix(key, np.uint64(3)), hard, item_names, n_band, n_hard, picked)
        for each in range(count):
            named[n_named], sources[n_named] = hard[picked[each]], 2
            n_named += 1
        first = filled
        low, high = wanted_from[p], wanted_to[p]
        for each in range(n_named):
            at = low + np.searchsorted(wanted[low:high], named[each])
            if at < high and wanted[at] == named[each]:
                continue
            known = False
            for other in range(first, filled):
                if out_item[other] == named[each]:
                    known = True
                    break
            if known:
                continue
            out_positive[filled], out_item[filled] = p, named[each]
            out_source[filled] = sources[each]
            out_probability[filled] = _of_any(
                *(named[each], around, n_around, n_session, probability, hard, n_band, share),
            )
            filled += 1
        own[p] = _of_any(
            *(positive_item[p], around, n_around, n_session, probability, hard, n_band, share),
        )
    return (
        out_positive[:filled],
        out_item[:filled],
        out_source[:filled],
        out_probability[:filled],
        own,
    )


@njit(cache=True)
def _of_any(  # type: ignore[no-untyped-def]
    item, around, n_around, n_session, probability, hard, n_band, share
):
    """The probability that any source names an item."""
    times = 0
    for at in range(n_around):
        times += around[at] == item
    none = (1.0 - times / n_around) ** n_session if n_around else 1.0
    none *= 1.0 - probability[item]
    for rank in range(n_band):
        if hard[rank] == item:
            none *= 1.0 - share
            break
    return 1.0 - none

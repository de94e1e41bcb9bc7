"""Click logs whose truth is known: relevance, and how likely each position is looked at.

Queries have candidates with features, and relevance grades that follow from the features in a
way no line can. The last feature is worth nothing, but the shop's rankers have a habit of going
by it, so what is shown first is what has more of it: trees fitted on clicks learn the habit.
Several rankers, each with its own errors, answer by turns, as in any shop that tests rankings: so
an item is shown at different positions for the same query, for reasons that have nothing to do
with the user. A click model then clicks:

- `pbm`, position-based (Richardson et al. 2007): position k is examined with a probability θ_k of
  its own; what is examined is clicked by its relevance.
- `cascade` (Craswell et al. 2008, with the stopping of Chuklin et al. 2015, DCM): the list is read
  downwards, and left after a click with a probability; so whether a position is examined depends
  on what stood above, which position-based estimators can only meet on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.features.batch import Batch

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class SimulationSettings(Settings):
    """A shop that does not exist.

    Attributes:
        queries: distinct ones; candidates: of each; features: of each (query, item).
        requests: how often a query is asked, on average: some often, most seldom.
        positions: items shown.
        click_model: `pbm` or `cascade`.
        eta: severity of position bias: θ_k = k^-eta (pbm).
        stop: after a click the list is left with this probability (cascade); persevere: after
            an item without a click it is read on with this one (cascade).
        noise: chance that an examined item of the lowest grade is clicked all the same.
        rankers: how many answer by turns; spread: how much their scores differ from each other,
            in standard deviations of what they have in common.
        skill: correlation of what they have in common with relevance; the rest is the habit.
    """

    queries: int = Field(1000, ge=1)
    candidates: int = Field(20, ge=2)
    features: int = Field(12, ge=4)
    requests: float = Field(20, gt=0)
    positions: int = Field(10, ge=2)
    click_model: Literal["pbm", "cascade"] = "pbm"
    eta: float = Field(1.0, ge=0)
    stop: float = Field(0.7, ge=0, le=1)
    persevere: float = Field(0.85, ge=0, le=1)
    noise: float = Field(0.1, ge=0, lt=1)
    rankers: int = Field(3, ge=1)
    spread: float = Field(0.5, ge=0)
    skill: float = Field(0.5, ge=-1, le=1)

    @model_validator(mode="after")
    def _enough(self) -> SimulationSettings:
        if self.positions > self.candidates:
            raise ValueError("positions: not more than candidates")
        return self


@dataclass(frozen=True)
class SimulatedShop:
    """q queries with c candidates each.

    Attributes:
        features: float32[q, c, f]; grade: int64[q, c], relevance 0 … 4.
    """

    features: npt.NDArray[np.float32]
    grade: Int64

    @property
    def gain(self) -> npt.NDArray[np.float32]:
        """2^grade - 1: float32[q, c]."""
        return (2.0**self.grade - 1).astype(np.float32)

    def queries(self, start: int, stop: int) -> SimulatedShop:
        """Queries start … stop-1 as a shop of their own."""
        return SimulatedShop(self.features[start:stop], self.grade[start:stop])

    def batch(self) -> Batch:
        """Every query as one request with all its candidates, labelled with their gains."""
        q, c, _ = self.features.shape
        return _batch(self, np.repeat(np.arange(q), c), np.tile(np.arange(c), q), c, self.gain)


@dataclass(frozen=True)
class SimulatedLog:
    """r requests of p shown items each, n = r·p rows, request by request in shown order.

    Attributes:
        query: int64[n]; item: int64[n], which of the query's candidates; position: int64[n],
            from 1; click, examined: bool[n].
        propensity: float64[p], the share of requests in which position k was examined, in the
            limit (pbm) or in this log (cascade).
    """

    query: Int64
    item: Int64
    position: Int64
    click: npt.NDArray[np.bool_]
    examined: npt.NDArray[np.bool_]
    propensity: Float64

    @property
    def positions(self) -> int:
        """Items shown a request."""
        return len(self.propensity)

    def batch(self, shop: SimulatedShop) -> Batch:
        """Requests as shown, labelled with clicks; the last feature is `position`."""
        batch = _batch(shop, self.query, self.item, self.positions, self.click.astype(np.float32))
        position = self.position.astype(np.float32)[:, None]
        return Batch(
            **{
                **vars(batch),
                "names": (*batch.names, "position"),
                "features": np.hstack([batch.features, position]),
            }
        )


def simulate_shop(settings: SimulationSettings, seed: int) -> SimulatedShop:
    """Queries, candidates and their relevance; same settings and seed, same shop."""
    rng = np.random.default_rng([seed, 0])
    shape = (settings.queries, settings.candidates, settings.features)
    features = rng.normal(size=shape).astype(np.float32)
    a, b, c = features[..., 0], features[..., 1], features[..., 2]
    rest = features[..., 3:-1] @ rng.normal(0, 0.3, settings.features - 4)
    worth = a + np.abs(b) * 1.2 - 1.5 * (c > 0.8) + a * (b > 0) + rest
    worth = worth + rng.normal(0, 0.5, shape[:2])
    cuts = np.quantile(worth, [0.5, 0.75, 0.88, 0.96])
    return SimulatedShop(features, np.searchsorted(cuts, worth).astype(np.int64))


def simulate_log(shop: SimulatedShop, settings: SimulationSettings, seed: int) -> SimulatedLog:
    """Requests to a shop and what was clicked; same arguments, same log."""
    rng = np.random.default_rng([seed, 1])
    q, c = shop.grade.shape
    k = settings.positions
    relevance = (shop.grade - shop.grade.mean()) / shop.grade.std()
    common = settings.skill * relevance
    common = common + np.sqrt(1 - settings.skill**2) * shop.features[..., -1]
    scores = common[None] + settings.spread * rng.normal(size=(settings.rankers, q, c))
    ranked = np.argsort(-scores, axis=2, kind="stable")[:, :, :k]
    popularity = np.asarray(rng.pareto(1.5, size=q)) + 0.2
    count = max(1, round(q * settings.requests))
    query = rng.choice(np.arange(q), size=count, p=popularity / popularity.sum())
    shown = ranked[rng.integers(0, settings.rankers, len(query)), query]
    gain = 2.0**shop.grade - 1
    attraction = settings.noise + (1 - settings.noise) * gain / 15
    liked = rng.random(shown.shape) < attraction[query[:, None], shown]
    if settings.click_model == "pbm":
        theta = np.arange(1, k + 1, dtype=np.float64) ** -settings.eta
        examined = rng.random(shown.shape) < theta
        propensity = theta
    else:
        stays = rng.random(shown.shape) < np.where(liked, 1 - settings.stop, settings.persevere)
        examined = np.ones(shown.shape, dtype=np.bool_)
        examined[:, 1:] = np.logical_and.accumulate(stays[:, :-1], axis=1)
        propensity = examined.mean(axis=0)
    return SimulatedLog(
        query=np.repeat(query, k).astype(np.int64),
        item=shown.ravel().astype(np.int64),
        position=np.tile(np.arange(1, k + 1), len(query)),
        click=(liked & examined).ravel(),
        examined=examined.ravel(),
        propensity=propensity,
    )


def _batch(
    shop: SimulatedShop, query: Int64, item: Int64, size: int, label: npt.NDArray[np.float32]
) -> Batch:
    requests = len(query) // size
    return Batch(
        names=tuple(f"feature_{at}" for at in range(shop.features.shape[2])),
        features=shop.features[query, item],
        item=(query * shop.grade.shape[1] + item).astype(np.int32),
        offsets=np.arange(0, len(query) + 1, size, dtype=np.int64),
        history=[np.empty(0, dtype=np.int32)] * requests,
        user=np.full(requests, -1, dtype=np.int32),
        label=label.ravel(),
        weight=np.ones(len(query), dtype=np.float32),
    )

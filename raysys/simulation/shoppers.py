"""Shoppers with tastes, position bias, fatigue, budgets and seasons over a real catalogue.

A click is examined attractiveness (the position-based model; Chuklin, Markov and de Rijke, Click
models for web search, 2015): P(click) = examination(position) · σ(utility). The utility of an item
adds up how it suits the shopper's taste, how good it is, its season, and what the shopper has
grown tired of. A purchase follows a click, if the money is there. All of it is known, so that what
a shop shows can be measured against the best that could be shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import expit

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.errors import UserError

Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.integer]

YEAR = 365.25
"""Days."""
MONTH = YEAR / 12
_OFF_QUERY = 4.0  # utility that an item loses that does not answer the query


class ShopperSettings(Settings):
    """What shoppers are like.

    Attributes:
        shoppers: how many.
        category: column of the catalogue by which items are alike.
        factors: dimensions of tastes.
        taste: how far tastes reach, in utility; 0: all like the same.
        quality: spread of how good items are to everybody.
        click: utility of a click on an average item.
        purchase: utility of a purchase of an average item that was clicked.
        position_bias: examination falls as position to the power of minus this.
        fatigue: utility that an item loses each time it was shown and passed by.
        fatigue_days: until half of that is forgotten.
        season: how far the seasons of categories reach, in utility.
        budget: of a month, in prices of the median item; shoppers differ around it. null: no end.
        thrift: utility lost as a price doubles over that of its category.
        seed: of everything.
    """

    shoppers: int = Field(500, ge=1, le=1_000_000)
    category: Literal["department", "category", "subcategory", "brand"] = "category"
    factors: int = Field(8, ge=1, le=64)
    taste: float = Field(1.0, ge=0)
    quality: float = Field(0.5, ge=0)
    click: float = -3.5
    purchase: float = -1.5
    position_bias: float = Field(0.8, ge=0)
    fatigue: float = Field(0.4, ge=0)
    fatigue_days: float = Field(7.0, gt=0)
    season: float = Field(0.5, ge=0)
    budget: float | None = Field(20.0, gt=0)
    thrift: float = Field(0.3, ge=0)
    seed: int = Field(0, ge=0)


@dataclass
class Memory:
    """What a shopper remembers.

    Attributes:
        passed: item → (times it was passed by, each halving with time; day of the last).
        month: that the spending belongs to; spent: money in it.
    """

    passed: dict[int, tuple[float, float]] = field(default_factory=dict)
    month: int = -1
    spent: float = 0.0


@dataclass(frozen=True)
class Reaction:
    """What a shopper does with a list: bool[k] each, in the list's order."""

    clicked: npt.NDArray[np.bool_]
    favorite: npt.NDArray[np.bool_]
    cart: npt.NDArray[np.bool_]
    purchased: npt.NDArray[np.bool_]


class Shoppers:
    """A population over a catalogue.

    Args:
        catalogue: whose items are shown.
        settings: what shoppers are like.

    Raises:
        UserError: the catalogue is empty.
    """

    def __init__(self, catalogue: Catalogue, settings: ShopperSettings) -> None:
        if not len(catalogue):
            raise UserError("an empty catalogue: nothing to show")
        self.catalogue, self.settings = catalogue, settings
        rng = np.random.default_rng(settings.seed)
        codes, labels = catalogue.codes(settings.category)
        self.labels = [*labels, "(none)"]
        self.code = np.where(codes < 0, len(labels), codes)
        n, kinds, d = len(catalogue), len(self.labels), settings.factors
        of_kind = rng.standard_normal((kinds, d))
        self.vector: Float64 = 0.9 * of_kind[self.code] + 0.45 * rng.standard_normal((n, d))
        self.quality: Float64 = settings.quality * rng.standard_normal(n)
        self.phase, self.swing = rng.random(kinds), settings.season * rng.random(kinds)
        # a shopper likes two kinds, and a little of everything
        liked = rng.integers(0, kinds, (settings.shoppers, 2))
        own = of_kind[liked].sum(1) + 0.5 * rng.standard_normal((settings.shoppers, d))
        self.taste: Float64 = own / np.linalg.norm(own, axis=1, keepdims=True)
        self.liked = liked
        price = catalogue.values("price")
        known = price[np.isfinite(price) & (price > 0)]
        self.median_price = float(np.median(known)) if len(known) else 1.0
        self.price = np.where(np.isfinite(price) & (price > 0), price, self.median_price)
        logs = np.log2(self.price)
        typical = np.bincount(self.code, weights=logs, minlength=kinds) / np.maximum(
            np.bincount(self.code, minlength=kinds), 1
        )
        self.dearness: Float64 = logs - typical[self.code]
        monthly = np.inf if settings.budget is None else settings.budget * self.median_price
        self.budget: Float64 = monthly * rng.lognormal(0, 0.5, settings.shoppers)

    def __len__(self) -> int:
        return self.settings.shoppers

    def name(self, shopper: int) -> str:
        """The user_id of a shopper."""
        return f"shopper-{shopper}"

    def utility(self, shopper: int | Int, item: Int, day: float) -> Float64:
        """How much a shopper wants items on a day: float64[…], of shopper […] and item […].

        Without fatigue: what is wanted, not what is bearable today.
        """
        how = self.settings
        # a unit vector on one of unit variance in every direction: of about unit variance
        fit = np.einsum("...d,...d->...", self.taste[shopper], self.vector[item])
        code = self.code[item]
        season = self.swing[code] * np.cos(2 * np.pi * (day / YEAR - self.phase[code]))
        worth = self.quality[item] + season - how.thrift * self.dearness[item]
        return np.asarray(how.click + how.taste * fit + worth, np.float64)

    def examination(self, position: Int) -> Float64:
        """Probability that a position is looked at, 1 for the first: float64[k]."""
        return np.asarray(position, np.float64) ** -self.settings.position_bias

    def click_probability(
        self,
        shopper: int,
        items: Int,
        day: float,
        memory: Memory | None = None,
        query: str | None = None,
    ) -> Float64:
        """Of every item of a list, in the list's order: float64[k]."""
        wanted = self.utility(shopper, items, day)
        if memory is not None:
            wanted = wanted - self.settings.fatigue * self._tired(items, day, memory)
        if query is not None:
            wanted = wanted - _OFF_QUERY * ~self.answers(items, query)
        return self.examination(np.arange(1, len(items) + 1)) * expit(wanted)

    def purchase_probability(self, shopper: int, items: Int, day: float) -> Float64:
        """Once an item was clicked and there is money: float64[k]."""
        return np.asarray(
            expit(self.utility(shopper, items, day) - self.settings.click + self.settings.purchase)
        )

    def value(
        self, shopper: int, items: Int, day: float, query: str | None = None
    ) -> tuple[float, float]:
        """Clicks and purchases that are expected of a list, by a shopper who is not tired."""
        click = self.click_probability(shopper, items, day, query=query)
        return float(click.sum()), float(click @ self.purchase_probability(shopper, items, day))

    def ideal(
        self, shopper: int, day: float, k: int, query: str | None = None
    ) -> npt.NDArray[np.int64]:
        """The k items that are wanted most and answer the query, best first: int64[≤ k]."""
        every = np.arange(len(self.catalogue))
        if query is not None:
            every = every[self.answers(every, query)]
        wanted = self.utility(shopper, every, day)
        return every[np.argsort(-wanted, kind="stable")[:k]]

    def query(self, shopper: int, rng: np.random.Generator) -> str:
        """What a shopper searches for: a kind that is liked, by its name."""
        code = int(self.liked[shopper, rng.integers(2)])
        return self.labels[code].lower()

    def answers(self, items: Int, query: str) -> npt.NDArray[np.bool_]:
        """Whether items are of the kind that was searched for: bool[k]."""
        wanted = np.array([label.lower() == query for label in self.labels])
        return np.asarray(wanted[self.code[items]], np.bool_)

    def react(
        self,
        shopper: int,
        items: Int,
        day: float,
        memory: Memory,
        rng: np.random.Generator,
        query: str | None = None,
    ) -> Reaction:
        """Show a list: who clicks, likes, and buys; what was passed by tires.

        Args:
            shopper: number.
            items: int[k], numbers in the catalogue, in the list's order.
            day: since whatever epoch; seasons and months count from it.
            memory: of this shopper, changed in place.
            rng: of this visit.
            query: where it was a search.
        """
        clicked = rng.random(len(items)) < self.click_probability(
            shopper, items, day, memory, query
        )
        buys = clicked & (rng.random(len(items)) < self.purchase_probability(shopper, items, day))
        favorite = clicked & (rng.random(len(items)) < 0.15)
        month = int(day // MONTH)
        if month != memory.month:
            memory.month, memory.spent = month, 0.0
        purchased = np.zeros(len(items), bool)
        for at in np.flatnonzero(buys):
            price = float(self.price[items[at]])
            if memory.spent + price <= self.budget[shopper]:
                memory.spent += price
                purchased[at] = True
        for item in items[~clicked].tolist():
            times, last = memory.passed.get(item, (0.0, day))
            memory.passed[item] = (times * self._kept(day - last) + 1, day)
        return Reaction(clicked, favorite, buys, purchased)

    def _tired(self, items: Int, day: float, memory: Memory) -> Float64:
        found = np.zeros(len(items))
        for at, item in enumerate(items.tolist()):
            if item in memory.passed:
                times, last = memory.passed[item]
                found[at] = times * self._kept(day - last)
        return found

    def _kept(self, days: float) -> float:
        return float(0.5 ** (max(days, 0.0) / self.settings.fatigue_days))

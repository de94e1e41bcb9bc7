"""What is done with a ranking before it is shown, as configuration, and how it is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.retrieval.search import Search
from raysys.serving.slots import Explore, Options, Slots

Int32 = npt.NDArray[np.int32]
Column = Literal["department", "category", "subcategory", "brand", "manufacturer", "title"]
DAY_MS = 86_400_000


def _utc(value: object) -> object:
    """A moment without a zone is meant in UTC; YAML reads 2026-11-27 as a day."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if hasattr(value, "hour"):
        return value if value.tzinfo else value.replace(tzinfo=UTC)  # type: ignore[attr-defined]
    if hasattr(value, "year"):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)  # type: ignore[attr-defined]
    return value


When = Annotated[datetime, BeforeValidator(_utc)]


class Dated(Settings):
    """Something that counts for a while.

    Attributes:
        starts: from when on, UTC where no zone is given; null: always.
        ends: until when, itself left out; null: for good.
    """

    starts: When | None = None
    ends: When | None = None

    def counts(self, now: int) -> bool:
        """Whether it counts at a moment in UTC ms."""
        after = self.starts is None or now >= self.starts.timestamp() * 1000
        return after and (self.ends is None or now < self.ends.timestamp() * 1000)


class Pin(Dated):
    """An item that has a place of its own, as far as filters, stock and exclusions let it.

    Attributes:
        item_id: which.
        position: where, from 1.
        queries: only for these queries, however they are typed; empty: on every list.
    """

    item_id: str
    position: Annotated[int, Field(ge=1, le=100)]
    queries: list[str] = []


class Boost(Dated):
    """Items that stand higher, or lower, than they would.

    Attributes:
        item_ids: which; or, instead of them,
        column: of the catalogue,
        values: of that column, and all items that have one of them.
        by: how much is added to a score, in parts of the list's own span: 1 lifts the worst
            candidate to the best, -1 does the opposite.
    """

    item_ids: list[str] = []
    column: Column | None = None
    values: list[str] = []
    by: Annotated[float, Field(ge=-10, le=10)]

    @model_validator(mode="after")
    def _something(self) -> Boost:
        if bool(self.item_ids) == (self.column is not None):
            raise ValueError("give item_ids, or column and values")
        if self.column is not None and not self.values:
            raise ValueError("give the values of the column")
        return self


class Diversity(Settings):
    """Maximal marginal relevance (Carbonell & Goldstein 1998): each place goes to the candidate
    with the most of λ · score - (1 - λ) · likeness to the most alike item above it.

    Attributes:
        relevance: λ; scores count from 0 to 1 within the list.
        by: what likeness is: the cosine of `vectors`, where the bundle has some, or the share of
            these columns with the same value.
    """

    relevance: Annotated[float, Field(ge=0, le=1)] = 0.7
    by: Literal["vectors"] | Annotated[list[Column], Field(min_length=1)] = "vectors"


class Exploration(Settings):
    """Now and then something else, so that one can learn what it would have brought.

    At each position, with probability `share`, the item is drawn among the next `depth` candidates
    instead of being the next. Every shown item comes with its propensity.

    Attributes:
        share: probability, at each position; 1: always, which is Plackett-Luce.
        from_position: positions before it are left alone.
        depth: candidates, from the next one on, that are drawn from.
        temperature: draw by softmax of score ÷ this, in standard deviations of the candidates'
            scores; null: all alike.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    from_position: Annotated[int, Field(ge=1, le=1000)] = 1
    depth: Annotated[int, Field(ge=2, le=1000)] = 20
    temperature: Annotated[float, Field(gt=0)] | None = None


class PolicyArgs(Settings):
    """What may be shown, and in which order.

    A grocer's customers buy the same things again, so nothing bought is left out by default; a
    shop that sells a thing once sets `exclude_bought`.

    Attributes:
        exclude_bought: leave out what the user bought, as far as the bundle remembers: its plan
            needs a table with `keys: [user, item]` and `events: [purchase]`, and no other events.
        exclude_bought_days: leave out what the user bought within so many days; null: nothing.
            It needs the same table.
        exclude_items: item ids that are never shown.
        at_most: most items of one value of a column in a list, such as {category: 4}. What goes
            beyond comes after everything else, so a list is never cut short by it.
        boosted: items that stand higher or lower than they would.
        pinned: items with a place of their own.
        diversity: keep a list from being all alike; null: best score first.
        exploration: show something else now and then; null: never.
    """

    exclude_bought: bool = False
    exclude_bought_days: Annotated[float, Field(gt=0)] | None = None
    exclude_items: Annotated[list[str], Field(max_length=100_000)] = []
    at_most: dict[Column, Annotated[int, Field(ge=1, le=1000)]] = {}
    boosted: Annotated[list[Boost], Field(max_length=1000)] = []
    pinned: Annotated[list[Pin], Field(max_length=1000)] = []
    diversity: Diversity | None = None
    exploration: Exploration | None = None


@dataclass(frozen=True)
class Arrangement:
    """A list as it is shown.

    Attributes:
        shown: int[≤ k], positions in the pool, in order.
        propensities: float64[≤ k], probability with which each item came to its place, given those
            above it; 1 where nothing was left to chance. Their product is the list's.
        scores: float32[n] of the pool, boosted.
        steps: position in the pool -> what the policy did to the item.
    """

    shown: npt.NDArray[np.intp]
    propensities: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    steps: dict[int, list[str]] = field(default_factory=dict)


class Policy:
    """A policy with its columns and items looked up once.

    Args:
        args: as configured.
        catalogue: ids that it does not have are ignored.
        search: of the bundle, for its vectors.

    Attributes:
        never: bool[n_items], items that are never shown.
    """

    def __init__(self, args: PolicyArgs, catalogue: Catalogue, search: Search) -> None:
        self.args = args
        self.never = np.zeros(len(catalogue), dtype=bool)
        self.never[_numbers(args.exclude_items, catalogue)] = True
        self._caps = [(str(n), catalogue.codes(n)[0], most) for n, most in args.at_most.items()]
        self._boosts = [(boost, _boosted(boost, catalogue)) for boost in args.boosted]
        self._pins = [
            (pin, number, {_plain(query) for query in pin.queries})
            for pin in args.pinned
            if (number := catalogue.number(pin.item_id)) is not None
        ]
        self._vectors = None
        self._alike: list[Int32] = []
        if args.diversity is not None:
            self._vectors = search.vectors if args.diversity.by == "vectors" else None
            columns = ["category"] if args.diversity.by == "vectors" else args.diversity.by
            self._alike = [catalogue.codes(name)[0] for name in columns]

    @property
    def excludes_bought(self) -> str | None:
        """Name of the setting by which what the user bought is left out; None: it is not."""
        if self.args.exclude_bought:
            return "exclude_bought"
        return None if self.args.exclude_bought_days is None else "exclude_bought_days"

    def bought_since(self, now: int) -> int | None:
        """From which moment on (UTC ms) what the user bought is left out; None: nothing is."""
        if self.args.exclude_bought:
            return 0
        days = self.args.exclude_bought_days
        return None if days is None else int(now - days * DAY_MS)

    def pins(self, now: int, query: str | None) -> dict[int, int]:
        """Position (from 1) -> item number, of the pins that count; the first of one place."""
        text = None if query is None else _plain(query)
        found: dict[int, int] = {}
        for pin, number, queries in self._pins:
            if pin.counts(now) and (not queries or text in queries) and not self.never[number]:
                found.setdefault(pin.position, number)
        return found

    def arrange(
        self,
        items: Int32,
        scores: npt.NDArray[np.float32],
        k: int,
        *,
        now: int = 0,
        query: str | None = None,
        seed: int = 0,
    ) -> Arrangement:
        """The k candidates to show; the same arguments give the same list.

        Best score first, equal scores in the order given, as far as the policy has no other wish.

        Args:
            items: int32[n], the pool.
            scores: float32[n].
            k: length of the list.
            now: UTC ms, for what is dated.
            query: as typed.
            seed: of the exploration.
        """
        steps: dict[int, list[str]] = {}
        boosted = self._boost(items, scores, now, steps)
        order = np.argsort(-boosted, kind="stable")
        pins = self.pins(now, query) if self._pins else {}
        args = self.args
        if not (self._caps or pins or args.diversity or args.exploration):
            shown = order[:k]
            return Arrangement(shown, np.ones(len(shown)), boosted, steps)
        slots = self._slots(items[order], boosted[order], pins)
        filled = slots.fill(k, seed)
        for at, notes in filled.notes.items():
            steps.setdefault(int(order[at]), []).extend(notes)
        return Arrangement(order[filled.chosen], filled.propensities, boosted, steps)

    def options(
        self,
        items: Int32,
        scores: npt.NDArray[np.float32],
        shown: Sequence[int],
        *,
        now: int = 0,
        query: str | None = None,
    ) -> list[Options]:
        """What this policy would put into each place below what was shown above it.

        Args:
            items: int32[n], the pool.
            scores: float32[n].
            shown: positions in the pool, from the top of the list; -1: an item beside the pool.
            now: UTC ms, for what is dated.
            query: as typed.

        Returns:
            For each place, as far as there are candidates: positions in the pool, int[m], and
            their probabilities, float64[m].
        """
        boosted = self._boost(items, scores, now, {})
        order = np.argsort(-boosted, kind="stable")
        rank = np.empty(len(order), np.intp)
        rank[order] = np.arange(len(order))
        slots = self._slots(items[order], boosted[order], self.pins(now, query))
        given = slots.given([int(rank[at]) if at >= 0 else -1 for at in shown])
        return [(order[open_to], share) for open_to, share in given]

    def _slots(self, ranked: Int32, scores: npt.NDArray[np.float32], pins: dict[int, int]) -> Slots:
        """Candidates, best first, and what their list has to heed."""
        args = self.args
        place = {int(item): at for at, item in enumerate(ranked)} if pins else {}
        return Slots(
            scores,
            pins={at - 1: place[item] for at, item in pins.items() if item in place},
            caps=[(name, codes[ranked], most) for name, codes, most in self._caps],
            relevance=args.diversity.relevance if args.diversity else 1.0,
            vectors=self._vectors_of(ranked),
            alike=[codes[ranked] for codes in self._alike],
            explore=_explore(args.exploration),
        )

    def _boost(
        self, items: Int32, scores: npt.NDArray[np.float32], now: int, steps: dict[int, list[str]]
    ) -> npt.NDArray[np.float32]:
        counting = [(boost.by, mask) for boost, mask in self._boosts if boost.counts(now)]
        if not counting or not len(items):
            return scores
        span = float(scores.max() - scores.min()) or 1.0
        boosted = scores.copy()
        for by, mask in counting:
            meant = mask[items]
            boosted[meant] += np.float32(by * span)
            for at in np.flatnonzero(meant).tolist():
                steps.setdefault(at, []).append(f"boosted by {by:g} of the span")
        return boosted

    def _vectors_of(self, items: Int32) -> npt.NDArray[np.float32] | None:
        index = self._vectors
        return None if index is None else index.vectors[index.row_of_item[items]]


def _explore(args: Exploration | None) -> Explore | None:
    if args is None:
        return None
    return Explore(args.share, args.from_position - 1, args.depth, args.temperature)


def _numbers(item_ids: list[str], catalogue: Catalogue) -> list[int]:
    found = [catalogue.number(item_id) for item_id in item_ids]
    return [number for number in found if number is not None]


def _boosted(boost: Boost, catalogue: Catalogue) -> npt.NDArray[np.bool_]:
    """Which items a boost means: bool[n_items]."""
    mask = np.zeros(len(catalogue), dtype=bool)
    if boost.column is None:
        mask[_numbers(boost.item_ids, catalogue)] = True
        return mask
    codes, labels = catalogue.codes(boost.column)
    return np.isin(codes, [code for code, label in enumerate(labels) if label in boost.values])


def _plain(query: str) -> str:
    return " ".join(query.lower().split())

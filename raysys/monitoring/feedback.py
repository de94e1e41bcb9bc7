"""What was shown, and what came of it: by surface and arm, by position, and against the training.

A slot is an item in an answered list. An event belongs to a slot when it names its request and its
item; however often it comes, it counts once. Seen is a slot with an impression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from raysys.monitoring.rates import OUTCOMES, SEEN, WITHIN_MINUTES, Rate, rates
from raysys.monitoring.reference import Outcomes
from raysys.monitoring.served import Lists
from raysys.monitoring.settings import Thresholds

POSITIONS: Final = 20
_SHOWN_QUERIES: Final = 20
_WITHOUT_CLICK: Final = 5  # lists, from which on a query that nobody clicks at is told
_Z: Final = 2.576  # 99%: several rates are looked at
_WITHIN_MS: Final = WITHIN_MINUTES * 60_000


@dataclass(frozen=True)
class SurfaceFacts:
    """Lists of one surface and arm.

    Attributes:
        surface, arm: as answers name them.
        lists, people: how many; empty: lists without an item.
        slots: items shown; seen: those with an impression.
        rates: outcome → of the slots.
        p50_ms, p99_ms: to answer.
        distinct: items shown; coverage: share of the catalogue, None where that is not known.
        top_share: of the slots that the most shown 1% of these items took.
    """

    surface: str
    arm: str
    lists: int
    people: int
    empty: int
    slots: int
    seen: int
    rates: Mapping[str, Rate]
    p50_ms: float
    p99_ms: float
    distinct: int
    coverage: float | None
    top_share: float


@dataclass(frozen=True)
class AtPosition:
    """Clicks at one place of a surface's lists, from 1 at the top."""

    surface: str
    position: int
    clicks: Rate


@dataclass(frozen=True)
class QueryFacts:
    """One query, as typed but for case and outer blanks.

    Attributes:
        query: its text.
        lists, people: how often, by how many.
        p50_ms, max_ms: to answer.
        clicks: slots clicked.
    """

    query: str
    lists: int
    people: int
    p50_ms: float
    max_ms: float
    clicks: int


@dataclass(frozen=True)
class OutcomeChange:
    """A rate now and before.

    Attributes:
        surface, outcome: what is compared.
        of: `seen` or `shown`: the slots that count.
        against: `training` or `window before`.
        before, now: rates; change: now ÷ before − 1.
        z: difference in standard errors, which know that people come back.
        over: whether the change is over the threshold, and no accident (99%).
    """

    surface: str
    outcome: str
    of: str
    against: str
    before: float
    now: float
    change: float
    z: float
    over: bool


@dataclass(frozen=True)
class Feedback:
    """What came of the lists of a window.

    Attributes:
        since, until: UTC ms.
        computed: UTC ms.
        lists: that there were; read: that were joined with their events.
        events: that came in and name one of these.
        surfaces: by surface and arm, most lists first.
        positions: clicks by position.
        slow, empty, without_click: queries that take longest, find nothing, get no click.
        queries_empty: lists of searches without an item.
        changes: of outcomes.
        notes: what could not be told, and why.
    """

    since: int
    until: int
    computed: int
    lists: int
    read: int
    events: int
    surfaces: tuple[SurfaceFacts, ...] = ()
    positions: tuple[AtPosition, ...] = ()
    slow: tuple[QueryFacts, ...] = ()
    empty: tuple[QueryFacts, ...] = ()
    without_click: tuple[QueryFacts, ...] = ()
    queries_empty: int = 0
    changes: tuple[OutcomeChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def drifted(self) -> bool:
        """Whether an outcome changed by more than it may."""
        return any(change.over for change in self.changes)

    @property
    def sentence(self) -> str:
        """The outcomes in a plain sentence."""
        over = [each for each in self.changes if each.over]
        if over:
            said = "; ".join(
                f"{each.outcome}s of {each.surface} {'rose' if each.change > 0 else 'fell'} by "
                f"{abs(each.change):.0%} against the {each.against}"
                for each in over[:4]
            )
            return f"What people do has changed: {said}."
        if self.changes:
            return "What people do with the lists has not changed by more than it may."
        return "There is nothing yet that outcomes could be compared with."

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {**asdict(self), "drifted": self.drifted, "sentence": self.sentence}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Feedback:
        """What `to_dict` gave.

        Raises:
            KeyError, TypeError: it did not.
        """
        plain = {k: v for k, v in content.items() if k not in ("drifted", "sentence")}
        surfaces = tuple(
            SurfaceFacts(**{**each, "rates": {k: Rate(**v) for k, v in each["rates"].items()}})
            for each in plain.pop("surfaces")
        )
        positions = tuple(
            AtPosition(each["surface"], each["position"], Rate(**each["clicks"]))
            for each in plain.pop("positions")
        )
        slow, empty, without_click = (
            tuple(QueryFacts(**each) for each in plain.pop(name))
            for name in ("slow", "empty", "without_click")
        )
        changes = tuple(OutcomeChange(**each) for each in plain.pop("changes"))
        notes = tuple(plain.pop("notes"))
        return cls(
            surfaces=surfaces, positions=positions, changes=changes, notes=notes,
            slow=slow, empty=empty, without_click=without_click, **plain,
        )  # fmt: skip


def slots_of(
    lists: pl.DataFrame, events: pl.DataFrame, within_ms: int | None = None
) -> pl.DataFrame:
    """A row a slot: request_id, at, surface, arm, who, item_id, position, shown, seen, outcomes.

    Args:
        lists: see `Lists.rows`.
        events: see `EVENTS`.
        within_ms: events count that came so soon after the list; None: all do.
    """
    slots = (
        lists.filter(pl.col("item_ids").list.len() > 0)
        .select(
            "request_id", "at", "surface", pl.col("arm").fill_null(""), "who",
            item_id="item_ids", position=pl.int_ranges(1, pl.col("item_ids").list.len() + 1),
        )
        .explode("item_id", "position")
    )  # fmt: skip
    known = events.join(lists.select("request_id", "at"), on="request_id", how="inner")
    if within_ms is not None:
        known = known.filter(pl.col("received") <= pl.col("at") + within_ms)
    done = known.group_by("request_id", "item_id").agg(
        seen=(pl.col("event_type") == SEEN).any(),
        **{name: (pl.col("event_type") == name).any() for name in OUTCOMES},
    )
    joined = slots.join(done, on=["request_id", "item_id"], how="left", maintain_order="left")
    flags = ("seen", *OUTCOMES)
    return joined.with_columns(
        *(pl.col(name).fill_null(value=False) for name in flags), shown=pl.lit(value=True)
    )


def feedback(
    now: Lists,
    events: pl.DataFrame,
    window: tuple[int, int],
    computed: int,
    *,
    items: int | None = None,
    reference: Mapping[str, Outcomes] | None = None,
    before: Lists | None = None,
    thresholds: Thresholds | None = None,
    least_people: int = 1,
) -> Feedback:
    """What came of the lists of a window.

    Args:
        now: its lists.
        events: that came in since the window before began.
        window: since and until, UTC ms.
        computed: UTC ms of now.
        items: of the catalogue.
        reference: outcomes of the training log, by surface.
        before: lists of the window before, for surfaces that the training log does not tell of.
        thresholds: None: those by default.
        least_people: queries are told that so many people typed.
    """
    slots = slots_of(now.rows, events)
    of_slots = events.join(now.rows.select("request_id"), on="request_id", how="semi")
    by_arm = {outcome: rates(slots, ("surface", "arm"), outcome, "shown") for outcome in OUTCOMES}
    limits = thresholds or Thresholds()
    settled = computed - _WITHIN_MS
    changes = outcome_changes(
        slots_of(now.rows.filter(pl.col("at") < settled), events, _WITHIN_MS),
        reference or {},
        None if before is None else slots_of(before.rows, events, _WITHIN_MS),
        limits,
    )
    clicks = rates(slots.filter(pl.col("position") <= POSITIONS), ("surface", "position"),
                   "click", "shown")  # fmt: skip
    queries = _queries(now.rows, slots, least_people)
    searched = now.rows.filter(pl.col("surface") == "search")
    notes = []
    if len(now.rows) < now.total:
        notes.append(f"{len(now.rows):,} of {now.total:,} lists were drawn and joined")
    if len(slots) and not slots["seen"].any():
        notes.append("no impressions come back, so what was shown counts as seen")
    return Feedback(
        since=window[0],
        until=window[1],
        computed=computed,
        lists=now.total,
        read=len(now.rows),
        events=len(of_slots),
        surfaces=_surfaces(now.rows, slots, by_arm, items),
        positions=tuple(
            AtPosition(str(surface), int(position), rate)
            for (surface, position), rate in sorted(clicks.items())
        ),
        slow=_told(queries.sort("p50_ms", "query", descending=[True, False])),
        empty=_told(
            queries.filter(pl.col("empty") == pl.col("lists")).sort(
                "lists", "query", descending=[True, False]
            )
        ),
        without_click=_told(
            queries.filter(
                pl.col("lists") >= _WITHOUT_CLICK, pl.col("clicks") == 0, pl.col("empty") == 0
            ).sort("lists", "query", descending=[True, False])
        )
        if slots["click"].any()
        else (),
        queries_empty=int((searched["item_ids"].list.len() == 0).sum()),
        changes=changes,
        notes=tuple(notes),
    )


def outcome_changes(
    now: pl.DataFrame,
    reference: Mapping[str, Outcomes],
    before: pl.DataFrame | None,
    thresholds: Thresholds,
) -> tuple[OutcomeChange, ...]:
    """Rates of every surface against those of the training log, else of the window before.

    Args:
        now, before: see `slots_of`, all as long after their lists.
        reference: outcomes of the training log, by surface.
        thresholds: from where on a change counts.
    """
    found = []
    for (surface,), part in sorted(now.partition_by("surface", as_dict=True).items()):
        old = None
        if before is not None:
            old = before.filter(pl.col("surface") == surface)
        trained = reference.get(str(surface))
        if trained is not None and not part["seen"].any():
            trained = None  # a log's rates are of what was seen
        if part["request_id"].n_unique() < thresholds.least_requests:
            continue
        if trained is None and (
            old is None or old["request_id"].n_unique() < thresholds.least_requests
        ):
            continue
        for outcome in OUTCOMES:
            if trained is not None:
                of, against = "seen", "training"
                then = trained.done.get(outcome, 0) / max(1, trained.seen)
                error = trained.errors.get(outcome, 0.0)
            else:
                assert old is not None
                of = "seen" if part["seen"].any() and old["seen"].any() else "shown"
                against = "window before"
                past = rates(old, (), outcome, of)[()]
                then, error = past.value, past.error
            rate = rates(part, (), outcome, of)[()]
            if not then and not rate.done:
                continue
            spread = float(np.hypot(error, rate.error))
            z = (rate.value - then) / spread if spread else 0.0
            change = rate.value / then - 1 if then else 1.0
            over = abs(change) >= thresholds.outcome and abs(z) >= _Z
            found.append(
                OutcomeChange(str(surface), outcome, of, against, then, rate.value, change, z, over)
            )
    return tuple(found)


def _surfaces(
    lists: pl.DataFrame,
    slots: pl.DataFrame,
    by_arm: Mapping[str, Mapping[tuple[Any, ...], Rate]],
    items: int | None,
) -> tuple[SurfaceFacts, ...]:
    keys = ("surface", "arm")
    found = []
    filled = lists.with_columns(pl.col("arm").fill_null(""))
    for key, part in filled.partition_by(*keys, as_dict=True).items():
        surface, arm = (str(each) for each in key)
        mine = slots.filter(pl.col("surface") == surface, pl.col("arm") == arm)
        often = np.sort(mine["item_id"].value_counts()["count"].to_numpy())[::-1]
        top = -(-len(often) // 100)
        found.append(
            SurfaceFacts(
                surface=surface,
                arm=arm,
                lists=len(part),
                people=part["who"].n_unique(),
                empty=int((part["item_ids"].list.len() == 0).sum()),
                slots=len(mine),
                seen=int(mine["seen"].sum()),
                rates={name: told[key] for name, told in by_arm.items() if key in told},
                p50_ms=float(np.quantile(part["took_ms"].to_numpy(), 0.5)),
                p99_ms=float(np.quantile(part["took_ms"].to_numpy(), 0.99)),
                distinct=len(often),
                coverage=len(often) / items if items else None,
                top_share=float(often[:top].sum() / often.sum()) if len(often) else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda each: (-each.lists, each.surface, each.arm)))


def _queries(lists: pl.DataFrame, slots: pl.DataFrame, least_people: int) -> pl.DataFrame:
    clicks = slots.group_by("request_id").agg(clicks=pl.col("click").sum())
    return (
        lists.filter(pl.col("surface") == "search", pl.col("query").is_not_null())
        .join(clicks, on="request_id", how="left")
        .group_by(query=pl.col("query").str.strip_chars().str.to_lowercase())
        .agg(
            lists=pl.len(),
            people=pl.col("who").n_unique(),
            p50_ms=pl.col("took_ms").median(),
            max_ms=pl.col("took_ms").max(),
            clicks=pl.col("clicks").fill_null(0).sum(),
            empty=(pl.col("item_ids").list.len() == 0).sum(),
        )
        .filter(pl.col("people") >= least_people)
    )


def _told(queries: pl.DataFrame) -> tuple[QueryFacts, ...]:
    rows = queries.head(_SHOWN_QUERIES).drop("empty").to_dicts()
    return tuple(QueryFacts(**row) for row in rows)

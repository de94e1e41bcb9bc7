"""The rules that need more than one row: asked of all clean events of some dates.

Dates are asked together, which costs a call for all of them instead of one each, but every date
is judged by itself: what a day says never depends on another, so nothing leaks from the future,
and a later run judges again only the dates that it touches. Whole users of a date may also
be judged in groups, with the same outcome. The price: what lies on both sides of midnight UTC is
not seen together.
"""

from __future__ import annotations

import polars as pl

from raysys import schema
from raysys.ingest.bots import DAY, find_bots
from raysys.ingest.columns import DAY_MS
from raysys.ingest.duplicates import find_duplicates, find_near_duplicates
from raysys.ingest.judging import quarantine
from raysys.ingest.refunds import LEFT, is_refund, what_is_left
from raysys.ingest.rule_settings import Action, RuleSettings
from raysys.ingest.rules import DUPLICATE, QUARANTINE_SCHEMA, ROW, SOURCE
from raysys.ingest.tally import EXAMPLES, Tally


def judge_days(
    events: pl.DataFrame,
    rules: RuleSettings | None = None,
    catalogue_size: int | None = None,
    *,
    table: str = "events",
) -> tuple[pl.DataFrame, pl.DataFrame, Tally]:
    """Ask the rules of days of the events of some dates, each by itself.

    Duplicates go first, or retries would make bots; then bots, or near duplicates would hide
    them; then near duplicates and refunds.

    Args:
        events: all clean events of whole dates, or of some users on them: columns of
            `schema.LOGGED_EVENTS` (timestamp Int64 UTC ms), `SOURCE`, `ROW` and `OWN_ID`; others
            are kept. In any order.
        rules: what becomes of each fault.
        catalogue_size: how many items the shop has, if it is known.
        table: what the quarantine calls these rows.

    Returns:
        The clean events in the given order, the quarantine (`QUARANTINE_SCHEMA`) by date, and the
        tally of these events alone (`rows_in` is their number: see `Tally.add_later`).
    """
    rules = rules or RuleSettings()
    days = _Days(events, table)
    if events.height:
        days.settle(DUPLICATE, rules.duplicate.action, find_duplicates(days.events))
        if rules.bots.action != "off":
            _settle_bots(days, rules, catalogue_size)
        if rules.near_duplicate.action != "off" and rules.near_duplicate.seconds:
            near = find_near_duplicates(days.events, rules.near_duplicate)
            days.settle("near_duplicate", rules.near_duplicate.action, near)
        _settle_refunds(days, rules)
    days.tally.rows_out = days.events.height
    return days.events, days.rejected(), days.tally


class _Days:
    """Events under judgement, and what has become of the others."""

    def __init__(self, events: pl.DataFrame, table: str) -> None:
        self.events = events
        self.tally = Tally(rows_in=events.height)
        self._table = table
        self._rejected = [pl.DataFrame(schema=QUARANTINE_SCHEMA)]
        self._rejected_on = [pl.Series(dtype=pl.Int64)]

    def rejected(self) -> pl.DataFrame:
        """What was put aside, date by date, as if each had been judged alone."""
        order = pl.concat(self._rejected_on).to_numpy().argsort(kind="stable")
        return pl.concat(self._rejected)[order]

    def settle(self, rule: str, action: Action, hit: pl.Series) -> None:
        """Do with some events what a rule says: Boolean[n], true where it applies."""
        self.settle_each(action, pl.select(pl.when(hit).then(pl.lit(rule)).alias(rule)).to_series())

    def settle_each(self, action: Action, rules: pl.Series, *, shown: bool = False) -> None:
        """The same for several rules: String[n], the rule that applies, or null.

        Examples are the events, unless others are `shown` already.
        """
        hit = rules.is_not_null()
        if not hit.any():
            return
        found, names = self.events.filter(hit), rules.filter(hit)
        counts = self.tally.reasons if action == "quarantine" else self.tally.kept
        for rule in names.unique().sort():
            rows = found.filter(names == rule)
            counts[rule] += rows.height
            if not shown:
                note_shown(self.tally, rule, rows.head(EXAMPLES))
        if action == "quarantine":
            told = found.select(schema.LOGGED_EVENTS.names)
            self._rejected.append(quarantine(found, told, names, self._table))
            self._rejected_on.append(found["timestamp"] // DAY_MS)
            self.events = self.events.filter(~hit)


def note_shown(tally: Tally, rule: str, rows: pl.DataFrame) -> None:
    """Keep some events as examples of a rule."""
    texts = rows.select(pl.struct(schema.LOGGED_EVENTS.names).struct.json_encode()).to_series()
    for source, row, text in zip(rows[SOURCE], rows[ROW], texts, strict=True):
        tally.example(rule, source, row, text)


def _settle_bots(days: _Days, rules: RuleSettings, catalogue_size: int | None) -> None:
    """All events of a bot on its day share its fate; the examples are its figures."""
    bots = find_bots(days.events, rules.bots, catalogue_size)
    if bots.height == 0:
        return
    one = ["user_id", DAY]
    events = days.events.with_columns((pl.col("timestamp") // DAY_MS).alias(DAY))
    signal = events.select(one).join(
        bots.select(*one, "signal"), on=one, how="left", maintain_order="left"
    )["signal"]
    theirs = events.filter(signal.is_not_null())
    first = theirs.sort(SOURCE, ROW).unique(one, keep="first", maintain_order=True)
    for name, count in bots.group_by("signal").len().sort("signal").iter_rows():
        days.tally.users[name] += count
        shown = bots.filter(pl.col("signal") == name).head(EXAMPLES).drop("signal")
        texts = shown.select(*one, evidence=pl.struct(pl.exclude(DAY)).struct.json_encode())
        for row in texts.join(first, on=one, how="left", maintain_order="left").iter_rows(
            named=True
        ):
            days.tally.example(name, row[SOURCE], row[ROW], row["evidence"])
    days.settle_each(rules.bots.action, signal, shown=True)


def _settle_refunds(days: _Days, rules: RuleSettings) -> None:
    """Refunds go; with `mend` they take their purchases of the day with them."""
    back = days.events.select(is_refund()).to_series()
    if not back.any():
        return
    reason = pl.select(pl.when(back).then(pl.lit("refund"))).to_series()
    if rules.refund.action == "mend":
        left = what_is_left(days.events)
        gone = left.filter(pl.col(LEFT) <= 0)["_at"]
        reason = reason.scatter(
            gone, pl.Series(["refunded_purchase"]).new_from_index(0, gone.len())
        )
        part = left.filter(pl.col(LEFT) > 0)
        if part.height:
            days.tally.mended["partly_refunded"] += part.height
            note_shown(days.tally, "partly_refunded", days.events[part["_at"].head(EXAMPLES)])
            less = days.events["quantity"].scatter(part["_at"], part[LEFT])
            days.events = days.events.with_columns(less.alias("quantity"))
    days.settle_each("quarantine", reason)

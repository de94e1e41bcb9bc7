"""Cleaning rules as data: each says what is wrong, and what becomes of the row.

A rule is an expression over draft rows (see `datasets.mapping`). Quarantining rules are asked in
order and the first that applies gives the reason; keeping rules count what passes; mending rules
then change it. All are first asked together whether they apply to any row at all, over the columns
that hold anything: a clean block costs little more than that. A new rule is one more entry of
`event_rules`, of `RuleSettings`, and a sentence in `words`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import polars as pl
from pydantic import Field

from raysys import schema
from raysys.config import Settings
from raysys.datasets.mapping import ATTRIBUTES, NEEDED, REFUND, UNPARSED
from raysys.datasets.times import EARLIEST, latest
from raysys.ingest import currencies, encodings
from raysys.ingest.catalogue_rules import Catalogue, Known
from raysys.ingest.rule_settings import Action, RuleSettings
from raysys.ingest.words import in_words as in_words

SOURCE: Final = "_source"
ROW: Final = "_row"
OWN_ID: Final = "_own_id"
"""Column of events on their way: whether the log itself named the event."""

DUPLICATE: Final = "duplicate"
AHEAD: Final = "in_the_future"
INFERRED: Final = "inferred_impression"
_BROKEN: Final = "\ufffd"
_HOUR: Final = 3_600_000
_IDS: Final = ("event_id", "user_id", "item_id", "session_id", "order_id", "event_type")
_ITEM_TEXTS: Final = (
    "title", "description", "department", "category", "subcategory", "brand", "manufacturer",
    "size",
)  # fmt: skip

QUARANTINE_SCHEMA: Final = {
    "table": pl.String,
    "reason": pl.String,
    "source": pl.String,
    "row": pl.Int64,
    "raw": pl.String,
}
"""Columns of `quarantine/*.parquet`: table, rule, file, record number, the row as JSON or text."""


class Limits(Settings):
    """Bounds that the rules hold rows to."""

    longest_text: int = Field(default=1000, ge=10)
    """Characters; longer texts (titles, descriptions, queries) are cut."""

    longest_id: int = Field(default=200, ge=8)
    """Characters; rows with longer ids are quarantined."""

    highest_price: float = Field(default=1e7, gt=0)
    """Of one unit; dearer ones are quarantined."""


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong with a row.

    Args:
        name: of the rule in counts, manifest and quarantine.
        action: what becomes of the row.
        applies: true where a draft row has the fault (null: it has not); or, for several columns
            that can have it alike, what is asked of each.
        columns: where all of these hold nothing, the rule need not be asked; empty: always ask.
        mend: for mending rules, what the columns become where it applies.
        catalogue: what the rule knows of items, if its expression needs `HELPERS`.
    """

    name: str
    action: Action
    applies: pl.Expr | Callable[[pl.Expr], pl.Expr]
    columns: tuple[str, ...] = ()
    mend: dict[str, pl.Expr] = field(default_factory=dict)
    catalogue: Catalogue | None = None

    def question(self, filled: frozenset[str]) -> pl.Expr | None:
        """The rule as one expression, given which columns hold anything; None: nothing to ask."""
        here = [name for name in self.columns if name in filled]
        if self.columns and not here:
            return None
        if isinstance(self.applies, pl.Expr):
            return self.applies
        asked = [self.applies(pl.col(name)) for name in here]
        return asked[0] if len(asked) == 1 else pl.any_horizontal(asked)


def event_rules(
    limits: Limits, rules: RuleSettings | None = None, known_items: Known | None = None
) -> list[Rule]:
    """The rules for draft events, in the order in which they are asked.

    Args:
        limits: bounds.
        rules: what becomes of each fault.
        known_items: the catalogue's ids, or a frame of them with `available_from` (Int64 ms),
            `price` and `currency` where it has them; None: there is no catalogue to compare with.
    """
    rules = rules or RuleSettings()
    what, moment = pl.col("event_type"), pl.col("timestamp")
    refund, back = rules.refund, (what == REFUND)
    found = [
        _mistyped(rules),
        _mistyped_optional(rules),
        Rule(
            "missing_value",
            rules.missing_value.action,
            pl.any_horizontal(pl.col("user_id", "event_type", "timestamp").is_null())
            | (pl.col("item_id").is_null() & (what != "search")),
        ),
        _broken_ids(_IDS, rules),
        _long_ids(_IDS, limits, rules),
        Rule(
            "refund",
            refund.action if refund.action == "quarantine" else "off",  # the day's rules mend
            back | ((what == "purchase") & (pl.col("quantity") < 0)),
            ("event_type",),
        ),
        Rule(
            "unknown_event_type",
            rules.unknown_event_type.action,
            ~what.is_in([*schema.EVENT_TYPES, REFUND]),
            ("event_type",),
        ),
        Rule("before_1990", rules.before_1990.action, moment < EARLIEST, ("timestamp",)),
        Rule(
            AHEAD,
            rules.in_the_future.action,
            moment > latest(rules.in_the_future.hours),
            ("timestamp",),
        ),
        *_quantity_rules(rules),
        *_price_rules(rules, limits, unless=back),
        *_currency_rules(rules),
        _test_users(rules),
        *_text_rules(("query",), limits, rules),
    ]
    if known_items is not None:
        found[-3:-3] = _catalogue_rules(rules, Catalogue.of(known_items))
    return [rule for rule in found if rule.action != "off"]


def item_rules(limits: Limits, rules: RuleSettings | None = None) -> list[Rule]:
    """The rules for draft items."""
    rules = rules or RuleSettings()
    found = [
        _mistyped(rules, ("item_id",)),
        _mistyped_optional(rules),
        _without("item_id"),
        _broken_ids(("item_id",), rules),
        _long_ids(("item_id",), limits, rules),
        *_price_rules(rules, limits),
        *_currency_rules(rules),
        *_text_rules(_ITEM_TEXTS, limits, rules),
    ]
    return [rule for rule in found if rule.action != "off"]


def user_rules(limits: Limits, rules: RuleSettings | None = None) -> list[Rule]:
    """The rules for draft users."""
    rules = rules or RuleSettings()
    value = pl.element().struct.field("value")
    key = pl.element().struct.field("key")
    found = [
        _without("user_id"),
        _broken_ids(("user_id",), rules),
        _long_ids(("user_id",), limits, rules),
        _test_users(rules),
        Rule(
            "long_text",
            rules.long_text.action,
            pl.col(ATTRIBUTES).list.eval(value.str.len_chars() > limits.longest_text).list.any(),
            (ATTRIBUTES,),
            {
                ATTRIBUTES: pl.col(ATTRIBUTES).list.eval(
                    pl.struct(key, value.str.slice(0, limits.longest_text))
                )
            },
        ),
    ]
    return [rule for rule in found if rule.action != "off"]


def _mistyped(rules: RuleSettings, needed: Iterable[str] = NEEDED) -> Rule:
    """Quarantines what could not be read: any value, or only those a row cannot do without."""
    unread = pl.col(UNPARSED)
    all_of_them = rules.mistyped_value.action == "quarantine"
    asked = unread.is_not_null() if all_of_them else unread.is_in(sorted(needed))
    return Rule("mistyped_value", "quarantine", asked, (UNPARSED,))


def _mistyped_optional(rules: RuleSettings) -> Rule:
    """Counts the unreadable values that rows do without: they are null already."""
    action: Action = "mend" if rules.mistyped_value.action == "mend" else "off"
    return Rule("mistyped_value", action, pl.col(UNPARSED).is_not_null(), (UNPARSED,))


def _without(key: str) -> Rule:
    return Rule("missing_value", "quarantine", pl.col(key).is_null())


def _broken_ids(columns: tuple[str, ...], rules: RuleSettings) -> Rule:
    return Rule("broken_encoding_in_id", rules.broken_encoding_in_id.action, _is_broken, columns)


def _is_broken(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_BROKEN, literal=True)


def _long_ids(columns: tuple[str, ...], limits: Limits, rules: RuleSettings) -> Rule:
    def is_long(text: pl.Expr) -> pl.Expr:
        # bytes first: their number is known, characters must be counted
        long = text.str.len_bytes() > limits.longest_id
        return pl.when(long).then(text).str.len_chars() > limits.longest_id

    return Rule("id_too_long", rules.id_too_long.action, is_long, columns)


def _text_rules(columns: tuple[str, ...], limits: Limits, rules: RuleSettings) -> list[Rule]:
    def is_long(text: pl.Expr) -> pl.Expr:
        long = text.str.len_bytes() > limits.longest_text
        return pl.when(long).then(text).str.len_chars() > limits.longest_text

    def is_mojibake(text: pl.Expr) -> pl.Expr:
        suspicious = pl.when(encodings.is_suspicious(text)).then(text)
        return suspicious != suspicious.map_batches(encodings.mended, return_dtype=pl.String)

    better = {
        name: pl.col(name).map_batches(encodings.mended, return_dtype=pl.String) for name in columns
    }
    cut = {name: pl.col(name).str.slice(0, limits.longest_text) for name in columns}
    return [
        Rule("broken_encoding", rules.broken_encoding.action, _is_broken, columns),
        Rule("mojibake", rules.mojibake.action, is_mojibake, columns, better),
        Rule("long_text", rules.long_text.action, is_long, columns, cut),
    ]


def _quantity_rules(rules: RuleSettings) -> list[Rule]:
    quantity = pl.col("quantity")
    nothing = {"quantity": pl.lit(None, dtype=pl.Float64)}
    taken_back = pl.col("event_type").is_in(["purchase", REFUND]) & (quantity < 0)
    not_positive = quantity <= 0
    if rules.refund.action == "mend":
        not_positive &= ~taken_back
    return [
        Rule(
            "impossible_quantity", rules.impossible_quantity.action,
            quantity.is_nan() | quantity.is_infinite(), ("quantity",), nothing,
        ),
        Rule(
            "quantity_not_positive", rules.quantity_not_positive.action, not_positive,
            ("quantity",), nothing,
        ),
    ]  # fmt: skip


def _price_rules(rules: RuleSettings, limits: Limits, unless: pl.Expr | None = None) -> list[Rule]:
    price = pl.col("price")
    negative = price < 0 if unless is None else (price < 0) & ~unless
    nothing = {"price": pl.lit(None, dtype=pl.Float64)}
    impossible = price.is_nan() | price.is_infinite() | (price > limits.highest_price)
    return [
        Rule("impossible_price", rules.impossible_price.action, impossible, ("price",), nothing),
        Rule("negative_price", rules.negative_price.action, negative, ("price",), nothing),
    ]


def _currency_rules(rules: RuleSettings) -> list[Rule]:
    spelling, unknown, foreign = (
        rules.currency_spelling, rules.unknown_currency, rules.foreign_currency
    )  # fmt: skip
    written = pl.col("currency")
    code = currencies.as_code(written, spelling.symbols)
    is_code = code.is_in(sorted(currencies.CODES))
    found = [
        Rule(
            "currency_spelling", spelling.action,
            (written != code) & is_code, ("currency",),
            {"currency": code},
        ),
        Rule(
            "unknown_currency", unknown.action, ~is_code, ("currency",),
            {"currency": pl.lit(None, dtype=pl.String)},
        ),
    ]  # fmt: skip
    if foreign.to is None or foreign.action == "off":
        return found
    other = is_code & (code != foreign.to)
    if foreign.action != "mend":
        return [*found, Rule("foreign_currency", foreign.action, other, ("currency",))]
    rates = list(foreign.rates)
    worth = code.replace_strict(foreign.rates, default=None, return_dtype=pl.Float64)
    converted = {"price": pl.col("price") * worth, "currency": pl.lit(foreign.to)}
    return [
        *found,
        Rule(
            "no_exchange_rate", rules.no_exchange_rate.action,
            other & ~code.is_in(rates) & pl.col("price").is_not_null(), ("currency",),
        ),
        Rule("foreign_currency", "mend", other & code.is_in(rates), ("currency",), converted),
    ]  # fmt: skip


def _test_users(rules: RuleSettings) -> Rule:
    known = rules.test_user
    user = pl.col("user_id")
    asked = user.is_in(list(known.ids)) if known.ids else pl.lit(False)
    if known.patterns:
        asked |= user.str.contains("|".join(f"(?:{pattern})" for pattern in known.patterns))
    action = known.action if known.ids or known.patterns else "off"
    return Rule("test_user", action, asked, ("user_id",))


def _catalogue_rules(rules: RuleSettings, catalogue: Catalogue) -> list[Rule]:
    slack = round(rules.before_item_existed.slack_hours * _HOUR)
    early = pl.col("timestamp") < pl.col(catalogue.SINCE) - slack
    ratio = pl.col("price") / pl.col(catalogue.PRICE)
    factor = rules.odd_price.factor
    comparable = (pl.col("currency") == pl.col(catalogue.CURRENCY)).fill_null(True)
    odd = (
        (pl.col("event_type") == "purchase")
        & comparable
        & (pl.col(catalogue.PRICE) > 0)
        & (pl.col("price") > 0)
        & ((ratio > factor) | (ratio < 1 / factor))
    )
    unknown = pl.col("item_id").is_not_null() & pl.col(catalogue.KNOWN).is_null()
    return [
        Rule("unknown_item", rules.unknown_item.action, unknown, ("item_id",), {}, catalogue),
        Rule(
            "before_item_existed", rules.before_item_existed.action, early, (catalogue.SINCE,), {},
            catalogue,
        ),
        Rule("odd_price", rules.odd_price.action, odd, (catalogue.PRICE,), {}, catalogue),
    ]  # fmt: skip

"""Every rule in a sentence: what reports and documentation explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from raysys import schema
from raysys.ingest.rule_settings import RuleSettings

if TYPE_CHECKING:
    from raysys.ingest.rules import Limits

READING: Final = {
    "line_does_not_parse": "The line has too few or too many columns, or is not a JSON object.",
    "truncated_file": "The file ends in the middle; what comes after counts as one row.",
    "unreadable_file": "The file cannot be opened as what it should be; it counts as one row.",
    "empty_file": "The file holds no rows; it counts as one row.",
    "missing_file": "The file went while ingest ran; it counts as one row.",
    "missing_columns": "The file lacks a column that no event can do without, and other files "
    "have; it counts as one row.",
}
"""What readers report as faults, in words."""

WHOLE_FILES: Final = frozenset(READING) - {"line_does_not_parse"}
"""Faults of a file rather than of a row of it."""

BEYOND_RULES: Final = {
    "fuel_in_thousandths": "Petrol counted in thousandths of a gallon was turned into gallons.",
    "inferred_impression": "No log says so, but it was probably shown: see sampling_probability.",
    "nowhere_promoted": "A promotion that names neither a display nor a mailer says nothing.",
}
"""What adapters mend or leave out, in words."""


def in_words(limits: Limits, rules: RuleSettings | None = None) -> dict[str, str]:
    """Every rule's sentence, by name."""
    rules = rules or RuleSettings()
    return {**READING, **BEYOND_RULES, **_of_rows(limits, rules), **_of_days(rules)}


def _of_rows(limits: Limits, rules: RuleSettings) -> dict[str, str]:
    foreign, odd = rules.foreign_currency, rules.odd_price
    return {
        "mistyped_value": "A number or a moment is neither, so it cannot be read.",
        "missing_value": "The user, the type, the moment or (except for searches) the item is not "
        "there.",
        "broken_encoding_in_id": "An id or a type holds bytes that are not in the file's encoding, "
        "so it cannot be trusted.",
        "id_too_long": f"An id has more than {limits.longest_id:,} characters.",
        "unknown_event_type": f"The type is none of {', '.join(schema.EVENT_TYPES)}, nor mapped "
        "to one.",
        "before_1990": "The moment lies before 1990.",
        "in_the_future": "The moment lies more than "
        f"{rules.in_the_future.hours:g} hours in the future.",
        "refund": "A purchase came back: its type is refund, or its quantity negative.",
        "quantity_not_positive": "The quantity is zero or negative: nothing happened to anything.",
        "impossible_quantity": "The quantity is not a number, or infinite.",
        "negative_price": "The price is below zero.",
        "impossible_price": f"The price is not a number, or above {limits.highest_price:,.0f}.",
        "currency_spelling": "The currency is not written as its ISO 4217 code: eur, €.",
        "unknown_currency": "The currency is no ISO 4217 code.",
        "foreign_currency": f"The price is not in {foreign.to or 'the one currency'}.",
        "no_exchange_rate": f"The price is not in {foreign.to or 'the one currency'}, and no rate "
        "is given for it.",
        "test_user": "The user is one of the shop's own tests.",
        "unknown_item": "Bought or seen, but not in the catalogue: added to it by id alone, if "
        "kept.",
        "before_item_existed": "The event is older than its item.",
        "odd_price": f"The price paid is more than {odd.factor:g} times the catalogue's, or less "
        "than that part of it.",
        "broken_encoding": "A text holds bytes that are not in the file's encoding; they read as "
        "�.",
        "mojibake": "A text was decoded wrongly once: cafÃ© for café.",
        "long_text": f"A text of more than {limits.longest_text:,} characters was cut.",
    }


def _of_days(rules: RuleSettings) -> dict[str, str]:
    bots = rules.bots
    windows = ", ".join(f"{kind} {w:g}" for kind, w in rules.near_duplicate.seconds.items())
    share = bots.share_of_catalogue
    whole = f", or {share:.0%} of the catalogue" if share else ""
    return {
        "duplicate": "The same event came before: equal user and event_id, or equal throughout.",
        "near_duplicate": "The user did the same to the same item a moment before (seconds: "
        f"{windows}).",
        "refunded_purchase": "The whole quantity of this purchase came back the same day.",
        "partly_refunded": "Part of the quantity of this purchase came back the same day.",
        "bot_rate": f"A user with {bots.events_per_minute} events or more in one minute.",
        "bot_fan_out": f"A user of {bots.items_per_day} different items or more a day{whole}.",
        "bot_night_and_day": f"A user active in {bots.active_hours} hours of one day or more.",
        "bot_no_purchase": f"A user with {bots.events_without_purchase} events or more a day who "
        "bought nothing.",
        "bot_regular": "A user whose events follow each other like a clock: their gaps vary by "
        f"less than {bots.regularity} of their mean.",
    }

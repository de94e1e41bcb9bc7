"""What becomes of each fault: the `rules` of an ingest YAML, every rule with its own choices."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field, field_validator, model_validator

from raysys import schema
from raysys.config import Settings
from raysys.ingest.currencies import CODES, SYMBOLS, is_code

Action = Literal["off", "keep", "mend", "quarantine"]
"""Do not ask; let pass and count; repair and count; put aside with its reason."""


def _require_code(code: str) -> None:
    if not is_code(code):
        some = ", ".join(sorted(CODES)[:5])
        raise ValueError(f"{code!r} is no ISO 4217 code ({some}, …)")


class Quarantined(Settings):
    """A fault that no row can be used with."""

    action: Literal["quarantine"] = "quarantine"


class KeptOrQuarantined(Settings):
    """A fault that cannot be repaired, but lived with."""

    action: Literal["keep", "quarantine"] = "quarantine"


class MendedOrQuarantined(Settings):
    """A fault that can be repaired, but not lived with."""

    action: Literal["mend", "quarantine"] = "quarantine"


class AnyAction(Settings):
    """A fault that can be lived with or repaired."""

    action: Literal["keep", "mend", "quarantine"] = "quarantine"


class InTheFuture(Settings):
    """Clocks that run ahead."""

    action: Literal["quarantine"] = "quarantine"

    hours: float = Field(default=24, ge=0)
    """A moment further ahead of the machine's clock than this is wrong."""


class CurrencySpelling(Settings):
    """A currency that is not written as its ISO 4217 code."""

    action: Literal["off", "keep", "mend", "quarantine"] = "mend"

    symbols: dict[str, str] = SYMBOLS
    """Sign → code; `$` and `¥` mean several currencies, so say which yours is."""

    @field_validator("symbols")
    @classmethod
    def _codes(cls, symbols: dict[str, str]) -> dict[str, str]:
        for code in symbols.values():
            _require_code(code)
        return symbols


class UnknownCurrency(Settings):
    """A currency that is no ISO 4217 code, however it is written."""

    action: Literal["off", "keep", "mend", "quarantine"] = "keep"


class ForeignCurrency(Settings):
    """Prices that are not in the one currency of `to`."""

    action: Literal["off", "keep", "mend", "quarantine"] = "off"

    to: str | None = None
    """The currency that all prices shall be in."""

    rates: dict[str, float] = {}
    """Currency → what one of it is worth in `to`."""

    @model_validator(mode="after")
    def _complete(self) -> ForeignCurrency:
        for code in (*self.rates, *((self.to,) if self.to else ())):
            _require_code(code)
        wrong = [code for code, rate in self.rates.items() if not 0 < rate < float("inf")]
        if wrong:
            raise ValueError(f"the rate of {wrong[0]} must be above zero")
        if self.action != "off" and self.to is None:
            raise ValueError("to must say which currency all prices shall be in")
        if self.action == "mend" and not self.rates:
            raise ValueError(f"rates must say what other currencies are worth in {self.to}")
        return self


class TestUser(Settings):
    """Users who are the shop's own tests."""

    __test__ = False  # pytest takes every class with such a name for a test

    action: Literal["off", "keep", "quarantine"] = "quarantine"

    ids: tuple[str, ...] = ()
    """Exactly these users."""

    patterns: tuple[str, ...] = ()
    """Regular expressions (of Rust's regex, found anywhere in the id): `^qa-`, `(?i)test`."""

    @field_validator("patterns")
    @classmethod
    def _compiled(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                pl.Series([""]).str.contains(pattern)
            except pl.exceptions.PolarsError as error:
                first = str(error).splitlines()[0]
                raise ValueError(f"{pattern!r} is no regular expression: {first}") from None
        return patterns


class Mojibake(Settings):
    """Text that was decoded wrongly once: `cafÃ©`."""

    action: Literal["off", "keep", "mend", "quarantine"] = "mend"


class UnknownItem(Settings):
    """Events of items that the shop's catalogue does not have."""

    action: Literal["keep", "quarantine"] = "keep"


class BeforeItemExisted(Settings):
    """Events older than the item's `available_from`."""

    action: Literal["off", "keep", "quarantine"] = "quarantine"

    slack_hours: float = Field(default=24, ge=0)
    """For dates without an hour, and zones."""


class OddPrice(Settings):
    """Purchases at a price far from the catalogue's, in the same currency."""

    action: Literal["off", "keep", "quarantine"] = "keep"

    factor: float = Field(default=20, gt=1)
    """Above so many times the catalogue's price, or below that part of it."""


class NearDuplicate(Settings):
    """Events that double clicks and clients' retries made: new ids, nothing new."""

    action: Literal["off", "keep", "quarantine"] = "keep"

    seconds: dict[str, float] = {"view": 1, "click": 1, "favorite": 1, "cart": 1}
    """Event type → two of one user and item within this are one. Types not named are never near
    duplicates: a basket may hold two lines of an item, a page may show one twice."""

    @field_validator("seconds")
    @classmethod
    def _known_types(cls, seconds: dict[str, float]) -> dict[str, float]:
        for kind, window in seconds.items():
            if kind not in schema.EVENT_TYPES:
                raise ValueError(f"{kind!r} is none of {', '.join(schema.EVENT_TYPES)}")
            if window < 0:
                raise ValueError(f"the seconds of {kind} must not be negative")
        return seconds


class Bots(Settings):
    """Users of a day who behave like programs; each signal is off when null.

    Impressions are not counted: pages make them. Purchases are not either, except to have bought.
    """

    action: Literal["off", "keep", "quarantine"] = "keep"

    at_least_events: int = Field(default=100, ge=2)
    """Nobody with fewer a day is a bot."""

    events_per_minute: int | None = Field(default=120, ge=2)
    """`bot_rate`: so many in one minute of the clock."""

    items_per_day: int | None = Field(default=2000, ge=2)
    """`bot_fan_out`: so many different items."""

    share_of_catalogue: float | None = Field(default=0.5, gt=0, le=1)
    """`bot_fan_out` as well: so much of a catalogue whose size is known, and at least
    `at_least_events` items."""

    active_hours: int | None = Field(default=22, ge=1, le=24)
    """`bot_night_and_day`: active in so many hours of the day."""

    events_without_purchase: int | None = Field(default=5000, ge=2)
    """`bot_no_purchase`: so many, and nothing bought."""

    regularity: float | None = Field(default=0.1, ge=0)
    """`bot_regular`: gaps between events whose standard deviation is below this part of their
    mean."""


class RuleSettings(Settings):
    """What becomes of rows with a fault, rule by rule.

    `keep` lets a row pass and counts it, `mend` repairs it and counts it, `quarantine` puts it
    aside with its reason, `off` does not ask. What a rule cannot do, its type does not allow.
    """

    mistyped_value: MendedOrQuarantined = MendedOrQuarantined()
    """mend: the value is dropped, if the row can do without it."""

    missing_value: Quarantined = Quarantined()
    broken_encoding_in_id: KeptOrQuarantined = KeptOrQuarantined()
    id_too_long: KeptOrQuarantined = KeptOrQuarantined()
    unknown_event_type: Quarantined = Quarantined()
    before_1990: Quarantined = Quarantined()
    in_the_future: InTheFuture = InTheFuture()

    refund: MendedOrQuarantined = MendedOrQuarantined()
    """A type `refund`, or a purchase of a negative quantity. mend: it also takes its purchase of
    the same day back, found by order and item, else by user and item."""

    quantity_not_positive: AnyAction = AnyAction()
    """mend: the quantity is dropped."""

    impossible_quantity: MendedOrQuarantined = MendedOrQuarantined()
    """mend: the quantity is dropped."""

    negative_price: AnyAction = AnyAction()
    """mend: the price is dropped."""

    impossible_price: MendedOrQuarantined = MendedOrQuarantined()
    """mend: the price is dropped."""

    currency_spelling: CurrencySpelling = CurrencySpelling()
    """mend: the code is written instead."""

    unknown_currency: UnknownCurrency = UnknownCurrency()
    """mend: the currency is dropped, the price stays."""

    foreign_currency: ForeignCurrency = ForeignCurrency()
    """mend: the price is converted."""

    no_exchange_rate: KeptOrQuarantined = KeptOrQuarantined()
    """A price that `foreign_currency` should mend and has no rate for."""

    test_user: TestUser = TestUser()
    unknown_item: UnknownItem = UnknownItem()
    """keep: the item is added to the catalogue by its id alone."""

    before_item_existed: BeforeItemExisted = BeforeItemExisted()
    odd_price: OddPrice = OddPrice()

    broken_encoding: AnyAction = AnyAction(action="mend")
    """mend: the text stays, with � for what could not be read."""

    mojibake: Mojibake = Mojibake()
    long_text: MendedOrQuarantined = MendedOrQuarantined(action="mend")
    """mend: the text is cut."""

    duplicate: KeptOrQuarantined = KeptOrQuarantined()
    near_duplicate: NearDuplicate = NearDuplicate()
    bots: Bots = Bots()

"""Items as a page shows them: a title, a price, a tile in the colour of its department."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raysys.catalogue import Catalogue

FACETS = ("department", "category", "brand")
SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "CNY": "¥", "JPY": "¥"}
_TOLD = 6
_LEFT_OUT = {"meaning": "the search by meaning", "query_vectors": "the meaning of the query"}


@dataclass(frozen=True)
class Card:
    """One item on a page.

    Attributes:
        item_id: of the catalogue.
        title: or the id, where there is none.
        detail: category, brand and size, as far as they are known.
        price: with its currency; empty if unknown.
        initials: of the title, for the tile.
        hue: a step of 15 degrees, the same for a department on every page; `shop.css` has them.
        position: in its list, from 1; 0: in none.
    """

    item_id: str
    title: str
    detail: str
    price: str
    initials: str
    hue: int
    position: int = 0


@dataclass(frozen=True)
class Reasons:
    """Why an item is where it is.

    Attributes:
        sources: who proposed it, in plain words.
        scores: (learner, base score).
        moved_by: (feature, standard deviations of the ensemble), the strongest first.
        probability: calibrated, of being bought; None if no ensemble answered.
    """

    sources: str
    scores: list[tuple[str, float]]
    moved_by: list[tuple[str, float]]
    probability: float | None


@dataclass(frozen=True)
class Facet:
    """The values of one column among the items of a list.

    Attributes:
        column: of the catalogue.
        values: (value, items that have it), most first.
        chosen: the values that are filtered by.
    """

    column: str
    values: list[tuple[str, int]]
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shelf:
    """A ranked list under its heading.

    Attributes:
        heading: what a visitor reads.
        cards: best first.
        request_id: of the answer; events send it back.
        note: what the answer says of itself, such as that it is degraded.
        asked: the call and its body, for a page to ask why.
    """

    heading: str
    cards: list[Card] = field(default_factory=list)
    request_id: str = ""
    note: str = ""
    asked: str = ""


def card_of(catalogue: Catalogue, item_id: str, position: int = 0) -> Card | None:
    """The card of an item; None if the catalogue lacks it."""
    number = catalogue.number(item_id)
    if number is None:
        return None
    row = catalogue.row(number)
    title = str(row["title"] or item_id)
    told = [str(row[name]).capitalize() for name in ("category", "brand", "size") if row[name]]
    return Card(
        item_id=item_id,
        title=title,
        detail=" · ".join(told),
        price=price_of(row),
        initials="".join(word[0] for word in title.split() if word[0].isalpha())[:2].upper(),
        hue=zlib.crc32(str(row["department"] or "").encode()) % 24 * 15,
        position=position,
    )


def shelf_of(catalogue: Catalogue, heading: str, answer: dict[str, Any], asked: str = "") -> Shelf:
    """The shelf of an answer; items that the catalogue lacks are left out."""
    cards = (card_of(catalogue, item["item_id"], item["position"]) for item in answer["items"])
    note = ""
    if answer["degraded"]:
        names = ", ".join(_LEFT_OUT.get(n, n.replace("_", " ")) for n in answer["left_out"])
        note = f"A quick answer, without {names}."
    return Shelf(heading, [card for card in cards if card], answer["request_id"], note, asked)


def price_of(row: dict[str, Any]) -> str:
    """A price as people write it."""
    if row["price"] is None:
        return ""
    currency = row["currency"] or ""
    symbol = SYMBOLS.get(currency)
    return f"{symbol}{row['price']:,.2f}" if symbol else f"{row['price']:,.2f} {currency}".strip()


def reasons_of(why: dict[str, Any]) -> Reasons:
    """What of an explanation a visitor can take in."""
    return Reasons(
        sources=", ".join(name.replace("_", " ") for name in why["sources"]),
        scores=list(why["base_scores"].items()),
        moved_by=list(why["moved_by"].items())[:_TOLD],
        probability=why["probability"],
    )


def facets_of(
    catalogue: Catalogue, item_ids: Sequence[str], chosen: dict[str, list[str]]
) -> list[Facet]:
    """What a list can be filtered by: of every column its most frequent values."""
    facets = []
    numbers = [n for n in map(catalogue.number, item_ids) if n is not None]
    for column in FACETS:
        codes, labels = catalogue.codes(column)
        counts = Counter(labels[codes[number]] for number in numbers if codes[number] >= 0)
        wanted = tuple(chosen.get(column, ()))
        for value in wanted:
            counts.setdefault(value, 0)
        if len(counts) > 1 or wanted:
            facets.append(Facet(column, counts.most_common(8), wanted))
    return facets

"""What rules know of the catalogue: which items there are, since when, and at what price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import polars as pl

Known = pl.Series | pl.DataFrame
"""Ids of all known items (String), or a frame with `item_id` and, where the catalogue has them,
`available_from` (Int64 UTC ms), `price` (Float64) and `currency` (String)."""

HELPERS: Final = ("_item_known", "_item_since", "_item_price", "_item_currency")
"""Columns that draft events have while rules ask for their items."""


@dataclass(frozen=True)
class Catalogue:
    """All known items, ready to be looked up."""

    items: pl.DataFrame  # item_id (distinct), then `HELPERS`

    KNOWN: ClassVar[str] = HELPERS[0]
    SINCE: ClassVar[str] = HELPERS[1]
    PRICE: ClassVar[str] = HELPERS[2]
    CURRENCY: ClassVar[str] = HELPERS[3]

    @classmethod
    def of(cls, known: Known) -> Catalogue:
        """The catalogue of some ids, or of a frame (see `Known`)."""
        frame = known.to_frame("item_id") if isinstance(known, pl.Series) else known

        def column(name: str, dtype: pl.DataType) -> pl.Expr:
            return pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype)

        return cls(
            frame.select(
                "item_id",
                pl.lit(True).alias(cls.KNOWN),
                column("available_from", pl.Int64()).alias(cls.SINCE),
                column("price", pl.Float64()).alias(cls.PRICE),
                column("currency", pl.String()).alias(cls.CURRENCY),
            )
            .drop_nulls("item_id")
            .unique("item_id", keep="first")
        )

    def describe(self, draft: pl.DataFrame) -> pl.DataFrame:
        """Draft events with `HELPERS`: null where the item is not known or says nothing."""
        # a block has few of the catalogue's items: a small table to join with
        here = self.items.filter(pl.col("item_id").is_in(draft["item_id"].unique().implode()))
        return draft.join(here, on="item_id", how="left", maintain_order="left")

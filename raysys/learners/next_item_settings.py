"""What `next_item` may be told, and what it takes of a shop by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.learners.sequences import sequence_learner_class


class NextItemSettings(Settings):
    """Which learner of sequences, and what it reads.

    Attributes:
        learner: its name.
        settings: its own settings.
        history: so many of the last items are read.
        attributes: columns of items that a transformer reads beside their numbers.
        text_model: makes the vectors of items' texts that a transformer with the setting
            `texts: true` reads: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging
            Face encoder. They are made once for each fit, and kept with the model.
        text: columns of items that are read then, in this order; empty: nearly all.
        max_tokens: read of each text.
        last_fraction: the latest part of the rows, left out where a search watches NDCG@10.
    """

    learner: Literal["sequence_transformer", "session_knn", "item_knn"] = "sequence_transformer"
    settings: dict[str, Any] = {}
    history: int = Field(50, ge=1)
    attributes: tuple[str, ...] = ("category", "subcategory", "brand")
    text_model: str = "all-MiniLM-L6-v2"
    text: tuple[str, ...] = ()
    max_tokens: int = Field(24, ge=4, le=512)
    last_fraction: float = Field(0.1, gt=0, lt=0.9)

    @field_validator("settings")
    @classmethod
    def _settings_are_the_learners(
        cls, given: dict[str, Any], info: ValidationInfo
    ) -> dict[str, Any]:
        """Held against the learner's own model, whose keys an error then names."""
        if "learner" in info.data:
            model = sequence_learner_class(info.data["learner"]).settings_model
            try:
                parse_settings(model, given, where="settings")
            except UserError as error:
                raise ValueError(error.what) from None
        return given

    @model_validator(mode="after")
    def _no_times(self) -> NextItemSettings:
        if self.settings.get("time_gaps"):
            raise ValueError(
                "settings.time_gaps: histories of examples and of requests hold items without "
                "their times; leave it out"
            )
        return self

    def of_sequences(self) -> Any:
        """The typed settings of the learner of sequences."""
        return sequence_learner_class(self.learner).settings_model(**self.settings)

    def within(self, name: str, items: int | None = None) -> Mapping[str, Any] | None:
        """See `HoldsSettings`; where the shop has other defaults than the learner, the shop's."""
        if name != "settings":
            return None
        own = dict(self.of_sequences())
        if self.learner == "sequence_transformer":
            shop = {"max_length": self.history, "negatives": None}
            if items is not None:
                shop["negatives"] = shop_negatives(items)
            shop |= {"texts": False, "time_gaps": False}
            own |= {each: value for each, value in shop.items() if each not in self.settings}
        return own


def shop_negatives(items: int) -> int:
    """Drawn for each step unless told, by the size of the catalogue; 0: all items compete."""
    return 0 if items <= 4000 else 2000

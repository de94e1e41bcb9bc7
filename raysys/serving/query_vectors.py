"""Vectors of queries that the log never had, which features compare items with."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

import numpy as np

from raysys.features.log import normalised_text
from raysys.learners.protocol import Float32
from raysys.registry import Bundle
from raysys.serving.asking import Ask

_KEPT: Final = 10_000
"""Queries whose vectors are remembered: the same few come all day."""


class QueryVectors:
    """Which queries need vectors, and those that were made; safe to use from several threads.

    Args:
        bundle: whose features they are for.
    """

    def __init__(self, bundle: Bundle) -> None:
        encoders, spaces = bundle.query_encoders, bundle.features.resources.vectors
        self._names = () if encoders is None else encoders.names
        widths = [spaces[name].items.shape[1] for name in self._names]
        self._cuts = np.cumsum(widths)[:-1]
        self._rows: OrderedDict[str, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def text_of(self, ask: Ask) -> str | None:
        """The query as the log would have it; None: it needs no vector, or the state has it."""
        if not self._names or ask.text is None or ask.query >= 0:
            return None
        return normalised_text(ask.text)

    def known(self, text: str) -> dict[str, Float32] | None:
        """float32[d] of a text by the vectors' name; None: it has not been encoded lately."""
        with self._lock:
            if text not in self._rows:
                return None
            self._rows.move_to_end(text)
            return self._split(self._rows[text])

    def take(self, text: str, row: Float32) -> dict[str, Float32]:
        """The same, of vectors side by side (`QueryEncoders.encode`) that were just made."""
        with self._lock:
            self._rows[text] = row
            if len(self._rows) > _KEPT:
                self._rows.popitem(last=False)
        return self._split(row)

    def _split(self, row: Float32) -> dict[str, Float32]:
        return dict(zip(self._names, np.split(row, self._cuts), strict=True))

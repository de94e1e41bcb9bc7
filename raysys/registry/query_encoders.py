"""What places a query that the log never had among the items, for features that compare the two."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from raysys.text.encoder import Encoder

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """What makes the vectors of one space: the model's folder, and how much of a text it reads."""

    folder: Path
    max_tokens: int


class QueryEncoders:
    """Texts to vectors of several spaces; safe to use from several threads.

    The models are those that made the vectors of the items, and are opened at the first use, which
    takes seconds; spaces of one model share it.

    Args:
        sources: by the vectors' name, in the order in which their vectors stand side by side.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)
        self._opened: dict[Source, Encoder] = {}
        self._device = "cpu"
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: Path) -> QueryEncoders | None:
        """Those of the features in a bundle's folder; None: no feature asks for such vectors."""
        from raysys.config import load_settings
        from raysys.features.plan import FeaturePlan
        from raysys.features.resources import encoders_in

        plan = load_settings(FeaturePlan, folder / "plan.yaml")
        wanted = [name for name in plan.of_queries if name in plan.encoded]
        if not wanted:
            return None
        models = encoders_in(folder / "resources")
        return cls({name: Source(models[name], plan.encoded[name].max_tokens) for name in wanted})

    @property
    def names(self) -> tuple[str, ...]:
        """Of the vectors, in order."""
        return tuple(self._sources)

    def place(self, device: str) -> None:
        """Run on a device, such as `cuda`, from now on."""
        with self._lock:
            self._device = device
            for encoder in self._opened.values():
                encoder.place(device)

    def encode(self, texts: Sequence[str]) -> Float32:
        """Vectors of texts, as precise as those that a state keeps (float16).

        Args:
            texts: normalised, as the log's queries are.

        Returns:
            float32[len(texts), sum of the spaces' dimensions], those of each space unit rows.
        """
        return np.concatenate(list(self._encode(texts).values()), axis=1)

    def by_text(self, texts: Sequence[str]) -> dict[str, dict[str, Float32]]:
        """The same by text and by the vectors' name: float32[d] each."""
        found = self._encode(texts)
        return {
            text: {name: vectors[row] for name, vectors in found.items()}
            for row, text in enumerate(texts)
        }

    def _encode(self, texts: Sequence[str]) -> dict[str, Float32]:
        distinct = dict.fromkeys(self._sources.values())
        made = {
            source: self._encoder(source).encode(texts).astype(np.float16).astype(np.float32)
            for source in distinct
        }
        return {name: made[source] for name, source in self._sources.items()}

    def _encoder(self, source: Source) -> Encoder:
        with self._lock:
            if source not in self._opened:
                from raysys.text.encoder import Encoder

                encoder = Encoder.open(
                    str(source.folder), source.max_tokens, None, where=str(source.folder)
                )
                encoder.place(self._device)
                self._opened[source] = encoder
            return self._opened[source]

"""Two fitted towers: vectors of every item's text, and what joins those of a history."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from raysys.catalogue import Catalogue
from raysys.features.batch import Batch
from raysys.learners.head import Head
from raysys.learners.protocol import Float32, Model
from raysys.learners.two_tower_settings import TwoTowerSettings
from raysys.text.compression.vectors import Kind, QuantisedVectors, quantise
from raysys.text.histories import PAD, history_codes
from raysys.text.items import ItemTexts, item_texts

if TYPE_CHECKING:
    from raysys.text.encoder import Encoder
    from raysys.text.towers import UserSide

META = "two_tower.json"
TEXTS = "texts.json"
VECTORS = "vectors.safetensors"
ENCODER = "encoder"
REQUESTS_PER_TASK = 256

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class TwoTowerModel(Model):
    """Vectors of every distinct item text, and what joins those of a history; a `TextEncoder`.

    Args:
        texts: of the catalogue it scores.
        vectors: unit rows, in the order of `texts.distinct`: float32[len(texts), d], or quantised.
        user_side: what turns a history into scores.
        settings: as fitted.
        encoder: a folder with the fine-tuned transformer, which is opened at the first `encode`;
            or the encoder itself.
        head: what joins vectors and features; None: the towers' score is the score.
        augmented: see `Model.augmented`.
    """

    def __init__(
        self,
        texts: ItemTexts,
        vectors: Float32 | QuantisedVectors,
        user_side: UserSide,
        settings: TwoTowerSettings,
        encoder: Path | Encoder,
        head: Head | None = None,
        augmented: Mapping[str, int] | None = None,
    ) -> None:
        self.texts = texts
        if not isinstance(vectors, QuantisedVectors):
            vectors = quantise(vectors, "float32")
        self.kept = vectors
        self.user_side = user_side
        self.settings = settings
        self.head = head
        self.requires = head.requires if head else ()
        self.augmented = dict(augmented or {})
        self._encoder = encoder
        self._opening = threading.Lock()

    @property
    def vectors(self) -> Float32:
        """Of every text: float32[len(texts), d], unit rows (nearly, where they are quantised)."""
        return self.kept.decode()

    @property
    def vector_bytes(self) -> int:
        """See `Compressible`."""
        return self.kept.nbytes

    def reencoded(self, items: Int32) -> TwoTowerModel:
        """See `Compressible.reencoded`."""
        codes = np.unique(self.texts.codes[items])
        vectors = self.vectors.copy()
        vectors[codes] = self.encode([self.texts.distinct[code] for code in codes])
        return self._with(vectors)

    def quantised(self, kind: Kind, *, seed: int = 0) -> TwoTowerModel:
        """See `Compressible.quantised`."""
        return self._with(quantise(self.vectors, kind, seed=seed))

    def _with(self, vectors: Float32 | QuantisedVectors) -> TwoTowerModel:
        return TwoTowerModel(
            self.texts, vectors, self.user_side, self.settings, self._encoder, self.head,
            self.augmented,
        )  # fmt: skip

    @property
    def item_vectors(self) -> Float32:
        """See `TextEncoder`. Made anew at each call: of 90,000 items they weigh 140 MB."""
        return self.kept.decode(self.texts.codes)

    @property
    def encoder(self) -> Encoder:
        """The transformer; opened when first asked for, which takes seconds."""
        with self._opening:
            if isinstance(self._encoder, Path):
                from raysys.text.encoder import Encoder

                self._encoder = Encoder.open(
                    str(self._encoder), self.settings.max_tokens, self.settings.trainable_layers
                )
                self._encoder.settle()
            return self._encoder

    def place(self, device: str) -> None:
        """See `Placeable`."""
        self.encoder.place(device)

    def encode(self, texts: Sequence[str]) -> Float32:
        """See `TextEncoder`; an empty text gets zeros."""
        return self.encoder.encode(texts)

    @cached_property
    def _interests(self) -> Float32:
        """Each text's vector as a part of a history: float32[len(texts), d]."""
        return self.user_side.interests(self.vectors)

    def _interests_of(self, codes: Int32) -> Float32:
        """Interests of some texts; looked up, unless vectors are kept small to save memory."""
        if self.kept.kind == "float32":
            return self._interests[codes]
        return self.user_side.interests(self.kept.decode(codes))

    @cached_property
    def _projected(self) -> Float32:
        """Each text's vector as the head sees it: float32[len(texts), p]."""
        assert self.head is not None
        return self.head.projected(self.vectors)

    def score(self, batch: Batch) -> Float32:
        """See `Model.score`: the head's, or the towers' where there is none."""
        codes = self.texts.codes[batch.item]
        history = history_codes(batch.history, self.texts, self.settings.history)

        def some(rows: slice, offsets: Int64, held: Int32) -> Float32:
            found = self._tower_scores(codes[rows], offsets, held)
            if self.head is not None:
                columns = batch.columns(self.requires)[rows]
                found = self._head_scores(columns, found, codes[rows], offsets, held)
            return found

        return _by_parts(some, batch.offsets, history)

    def contributions(self, batch: Batch) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
        """See `Explainable`: features, the towers, and the text with and without the history."""
        history = history_codes(batch.history, self.texts, self.settings.history)
        codes = self.texts.codes[batch.item]
        tower = self.tower_scores(codes, batch.offsets, history)
        if self.head is None:
            return ("towers",), tower[:, None].astype(np.float64)
        columns = np.concatenate([batch.columns(self.requires), tower[:, None]], axis=1)
        users = np.repeat(mean_of_history(self._projected, history), batch.sizes, axis=0)
        names = (*self.requires, "towers", "text", "text_by_history")
        return names, self.head.contributions(columns, self._projected[codes], users)

    def tower_scores(self, codes: Int32, offsets: Int64, history: Int32) -> Float32:
        """Of the towers alone: a soft maximum of cosines, plus what everybody wants: float32[n].

        Args:
            codes: int32[n], texts of the candidates.
            offsets: int64[r + 1], rows of each request.
            history: int32[r, length], codes of texts, newest first, then `PAD`.
        """
        return _by_parts(
            lambda rows, some, held: self._tower_scores(codes[rows], some, held), offsets, history
        )

    def _tower_scores(self, codes: Int32, offsets: Int64, history: Int32) -> Float32:
        found = np.empty(len(codes), dtype=np.float32)
        for row, held in enumerate(history):
            a, b = offsets[row], offsets[row + 1]
            interests = self._interests_of(held[held != PAD])
            found[a:b] = self.user_side.score(interests, self.kept.decode(codes[a:b]))
        return found

    def _head_scores(
        self, columns: Float32, tower: Float32, codes: Int32, offsets: Int64, history: Int32
    ) -> Float32:
        assert self.head is not None
        users = mean_of_history(self._projected, history)
        of_row = np.repeat(users, np.diff(offsets), axis=0)
        columns = np.concatenate([columns, tower[:, None]], axis=1)
        return self.head.score(columns, self._projected[codes], of_row)

    def save(self, folder: Path) -> None:
        """See `Model.save`: transformer and vectors as safetensors, tokenizer and texts as JSON."""
        from safetensors.numpy import save_file

        if isinstance(self._encoder, Path):
            shutil.copytree(self._encoder, folder / ENCODER)
        else:
            self._encoder.save(folder / ENCODER)
        side = self.user_side
        arrays = {
            "vectors": self.kept.codes,
            "turn": side.turn,
            "age": side.age,
            "common": side.common,
        }
        if self.head is not None:
            arrays |= self.head.arrays()
        arrays |= {f"vectors.{n}": each for n, each in self.kept.arrays().items() if n != "codes"}
        save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()},
                  folder / VECTORS)  # fmt: skip
        write_json(folder / TEXTS, self.texts.distinct)
        settings = self.settings.model_dump(mode="json")
        content = {"settings": settings, "sharpness": side.sharpness, "reads": self.requires}
        content |= {"augmented": self.augmented, "vectors": self.kept.kind}
        write_json(folder / META, content)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> TwoTowerModel:
        """See `Model.load`; texts that the catalogue gained since are encoded now."""
        from safetensors.numpy import load_file

        from raysys.text.towers import UserSide

        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = TwoTowerSettings(**meta["settings"])
        arrays = load_file(folder / VECTORS)
        known = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        texts = item_texts(catalogue, settings.text)
        user_side = UserSide(arrays["turn"], arrays["age"], arrays["common"], meta["sharpness"])
        head = Head.of(tuple(meta["reads"]), arrays) if settings.head else None
        encoder, augmented = folder / ENCODER, meta.get("augmented")
        kept = QuantisedVectors.of(
            meta.get("vectors", "float32"),
            {"codes": arrays["vectors"]}
            | {
                n.removeprefix("vectors."): a for n, a in arrays.items() if n.startswith("vectors.")
            },
        )
        model = cls(texts, kept, user_side, settings, encoder, head, augmented)
        if list(texts.distinct) != known:
            place = {text: at for at, text in enumerate(known)}
            codes = np.zeros((len(texts), kept.codes.shape[1]), dtype=kept.codes.dtype)
            gained = [at for at, text in enumerate(texts.distinct) if text not in place]
            there = [at for at, text in enumerate(texts.distinct) if text in place]
            codes[there] = kept.codes[[place[texts.distinct[at]] for at in there]]
            if gained:
                codes[gained] = kept.encoded(model.encode([texts.distinct[at] for at in gained]))
            model.kept = kept.with_codes(codes)
        return model


def _by_parts(
    score: Callable[[slice, Int64, Int32], Float32], offsets: Int64, history: Int32
) -> Float32:
    """Scores float32[n] of many requests in threads, of few at once.

    Args:
        score: of rows, their offsets from 0, and their histories.
        offsets: int64[r + 1], from 0.
        history: int32[r, length].
    """
    n_requests = len(history)
    starts = range(0, n_requests, REQUESTS_PER_TASK)
    if len(starts) <= 1:
        return score(slice(0, int(offsets[-1])), offsets, history)
    found = np.empty(int(offsets[-1]), dtype=np.float32)

    def some(first: int) -> None:
        last = min(first + REQUESTS_PER_TASK, n_requests)
        rows = slice(int(offsets[first]), int(offsets[last]))
        found[rows] = score(rows, offsets[first : last + 1] - rows.start, history[first:last])

    # threads of ours and of BLAS, on products as small as these, would only wait for each other
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(some, starts))
    return found


def mean_of_history(vectors: Float32, history: Int32) -> Float32:
    """Means float32[r, d] of the vectors float32[n, d] of histories int32[r, length]; 0 of none."""
    found = np.zeros((len(history), vectors.shape[1]), dtype=np.float32)
    for row, held in enumerate(history):
        known = held[held != PAD]
        if len(known):
            found[row] = vectors[known].mean(axis=0)
    return found


def write_json(path: Path, content: Any) -> None:
    """Write JSON with its non-ASCII letters as they are."""
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

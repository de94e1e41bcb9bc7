"""Vectors of items in fewer bytes: half precision, one byte a number, or a code a sub-vector.

`scalar` keeps each dimension in 8 bits between its least and most; `product` cuts a vector into
sub-vectors and keeps for each the nearest of 256 centres found by k-means (Jégou et al. 2011,
Product Quantization for Nearest Neighbor Search): 384 numbers in 48 bytes instead of 1,536.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError

Float32 = npt.NDArray[np.float32]
Kind = Literal["float32", "float16", "scalar", "product"]
KINDS: tuple[Kind, ...] = ("float32", "float16", "scalar", "product")
CENTRES = 256
FITTED_ON = 20_000
"""Rows that centres are fitted on, drawn at random: more change nothing but the time."""


@dataclass(frozen=True)
class QuantisedVectors:
    """n vectors of width d in few bytes.

    Attributes:
        kind: how they are kept.
        codes: float32[n, d], float16[n, d], uint8[n, d] (scalar) or uint8[n, d / s] (product).
        low: float32[d], scalar only: the value of code 0.
        step: float32[d], scalar only: what one code more adds.
        centres: float32[d / s, 256, s], product only.
    """

    kind: Kind
    codes: npt.NDArray[np.generic]
    low: Float32 | None = None
    step: Float32 | None = None
    centres: Float32 | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def width(self) -> int:
        """d."""
        if self.centres is not None:
            return int(self.centres.shape[0] * self.centres.shape[2])
        return int(self.codes.shape[1])

    @property
    def nbytes(self) -> int:
        """Of the codes and of what decodes them."""
        return sum(int(array.nbytes) for array in self.arrays().values())

    def decode(self, rows: npt.NDArray[np.integer] | slice = slice(None)) -> Float32:
        """Vectors float32[m, d] of some rows."""
        codes = self.codes[rows]
        if self.centres is not None:
            parts, many, width = self.centres.shape
            place = codes + many * np.arange(parts)  # one `take`: five times as fast as two indices
            flat = self.centres.reshape(parts * many, width)
            return flat.take(place.ravel(), axis=0).reshape(len(codes), self.width)
        if self.low is not None and self.step is not None:
            return (self.low + codes.astype(np.float32) * self.step).astype(np.float32)
        return codes.astype(np.float32, copy=False)

    def encoded(self, vectors: Float32) -> npt.NDArray[np.generic]:
        """Codes of other vectors float32[m, d], as these are kept."""
        if self.centres is not None:
            width = self.centres.shape[2]
            codes = np.empty((len(vectors), len(self.centres)), dtype=np.uint8)
            for part, centres in enumerate(self.centres):
                codes[:, part] = _nearest(vectors[:, part * width : (part + 1) * width], centres)
            return codes
        if self.low is not None and self.step is not None:
            return np.clip(np.rint((vectors - self.low) / self.step), 0, 255).astype(np.uint8)
        return vectors.astype(self.codes.dtype)

    def with_codes(self, codes: npt.NDArray[np.generic]) -> QuantisedVectors:
        """Other codes, kept in the same way."""
        return replace(self, codes=codes)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """For safetensors; `of` takes them back."""
        every = {"codes": self.codes, "low": self.low, "step": self.step, "centres": self.centres}
        return {name: array for name, array in every.items() if array is not None}

    @classmethod
    def of(cls, kind: Kind, arrays: Mapping[str, npt.NDArray[np.generic]]) -> QuantisedVectors:
        """What `arrays` gave."""
        return cls(kind, **{name: arrays[name] for name in arrays})  # type: ignore[arg-type]


def quantise(
    vectors: Float32, kind: Kind, *, parts: int | None = None, seed: int = 0
) -> QuantisedVectors:
    """Vectors float32[n, d] in fewer bytes.

    Args:
        vectors: float32[n, d].
        kind: see the module.
        parts: of `product`, sub-vectors and so bytes a vector; must divide d. None: about d / 8.
        seed: of the k-means.

    Raises:
        UserError: unknown kind, or parts that do not divide d.
    """
    if kind == "float32":
        return QuantisedVectors(kind, vectors.astype(np.float32))
    if kind == "float16":
        return QuantisedVectors(kind, vectors.astype(np.float16))
    empty = np.zeros((0, vectors.shape[1]), dtype=np.uint8)
    if kind == "scalar":
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        step = np.where(high > low, (high - low) / 255, 1).astype(np.float32)
        kept = QuantisedVectors(kind, empty, low=low.astype(np.float32), step=step)
        return kept.with_codes(kept.encoded(vectors))
    if kind == "product":
        parts = parts or _divisor(vectors.shape[1], vectors.shape[1] // 8)
        kept = QuantisedVectors(kind, empty, centres=_centres(vectors, parts, seed))
        return kept.with_codes(kept.encoded(vectors))
    raise UserError(f"no vectors {kind!r}", mend=f"choose among {', '.join(KINDS)}")


def _centres(vectors: Float32, parts: int, seed: int) -> Float32:
    """256 centres of every sub-vector: float32[parts, 256, d / parts]."""
    from sklearn.cluster import MiniBatchKMeans

    n, d = vectors.shape
    if d % parts:
        near = _divisor(d, parts)
        raise UserError(f"{parts} parts do not divide {d} dimensions", mend=f"take {near}, say")
    rng = np.random.default_rng(seed)
    some = vectors[rng.choice(n, FITTED_ON, replace=False)] if n > FITTED_ON else vectors
    width = d // parts
    centres = np.zeros((parts, CENTRES, width), dtype=np.float32)
    for part in range(parts):
        columns = some[:, part * width : (part + 1) * width]
        distinct = np.unique(columns, axis=0)
        if len(distinct) <= CENTRES:  # nothing is lost
            centres[part, : len(distinct)] = distinct
            centres[part, len(distinct) :] = distinct[0]
        else:
            fitted = MiniBatchKMeans(
                CENTRES, n_init=1, batch_size=2048, max_iter=20, random_state=seed + part
            )
            centres[part] = fitted.fit(columns).cluster_centers_
    return centres


def _divisor(d: int, most: int) -> int:
    """The largest divisor of d up to `most`."""
    return max(part for part in range(1, max(most, 1) + 1) if d % part == 0)


def _nearest(points: Float32, centres: Float32) -> npt.NDArray[np.uint8]:
    """Of each point the nearest centre, in bites that fit into a cache."""
    norms = (centres**2).sum(axis=1)
    found = np.empty(len(points), dtype=np.uint8)
    for at in range(0, len(points), 8192):
        some = points[at : at + 8192]
        found[at : at + 8192] = (norms - 2 * some @ centres.T).argmin(axis=1)
    return found

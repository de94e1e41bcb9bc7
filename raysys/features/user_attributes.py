"""What the shop tells of each user, as numbers: events do not change it, the shop may.

Labels have frozen codes, as those of the catalogue do (`vocabulary`). Of a user the newest word
counts whole: an attribute that it does not name is unknown from then on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load_file, save_file

from raysys.errors import UserError
from raysys.features.plan import FeaturePlan, UserAttribute
from raysys.features.vocabulary import Vocabulary

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

_LABELS: Final = "user_attributes.json"
_VALUES: Final = "user_attributes.safetensors"


class UserAttributes:
    """A column of numbers for each feature that reads an attribute, with room for new users.

    Args:
        features: the plan's features of users' attributes.
        n: users.
        vocabularies: labels by name of a feature that reads some.
    """

    def __init__(
        self,
        features: Sequence[UserAttribute],
        n: int,
        vocabularies: Mapping[str, Vocabulary] | None = None,
    ) -> None:
        self.features = tuple(features)
        self.names = tuple(dict.fromkeys(feature.attribute for feature in self.features))
        self._vocabularies = dict(vocabularies or {})
        self._values = {f.name: np.full(n, np.nan, np.float32) for f in self.features}

    @classmethod
    def fit(cls, plan: FeaturePlan, told: pa.Table, users: Sequence[str]) -> UserAttributes:
        """Fix the labels, and take over what is told of some users.

        Args:
            plan: its features of the kind `user_attribute` are read.
            told: what `texts_of` gives of all users; each stands there once.
            users: user_id by user number; what is told of others goes into the labels alone.
        """
        features = attributes_read(plan)
        vocabularies = {
            feature.name: Vocabulary.fit(told[feature.attribute], feature.min_count)
            for feature in features
            if feature.read_as == "label"
        }
        found = cls(features, len(users), vocabularies)
        place = pc.index_in(pa.array(users, pa.string()), value_set=told["user_id"])
        there = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False)).astype(np.int32)
        rows = place.drop_null()
        found.take(there, {name: told[name].take(rows) for name in found.names})
        return found

    def read(self, feature: UserAttribute, users: Int32) -> Float32:
        """One number a user, int32[n] (-1 unknown): float32[n], NaN where nothing is known."""
        values = self._values[feature.name]
        if not len(values):
            return np.full(len(users), np.nan, dtype=np.float32)
        return np.where(users >= 0, values[users], np.float32(np.nan)).astype(np.float32)

    def of(self, user: int) -> bytes:
        """All that is known of a user, as a key that differs where anything does; b"": nothing."""
        if user < 0:
            return b""
        return b"".join(values[user].tobytes() for values in self._values.values())

    def recoded(self, feature: UserAttribute, values: Float32, other: UserAttributes) -> Float32:
        """What another state says by a feature of that name, in this one's codes: float32[n].

        Args:
            feature: of this plan.
            values: float32[n], as `other` has them.
            other: whose labels may be others, or numbered otherwise.
        """
        theirs = other._vocabularies.get(feature.name)
        if feature.read_as == "number" or theirs is None:
            return values
        unseen = np.nan
        if feature.unseen == "own":
            unseen = float(len(self._vocabularies[feature.name].labels))
        codes = np.append(self._numbers(feature, pa.array(theirs.labels, pa.string())), unseen)
        found = np.full(len(values), np.nan, np.float32)
        known = ~np.isnan(values)
        found[known] = codes[np.minimum(values[known].astype(np.int64), len(theirs.labels))]
        return found

    def grow(self, n: int) -> None:
        """Make room for so many users."""
        for name, values in self._values.items():
            if n > len(values):
                room = np.full(max(n, 2 * len(values), 64), np.nan, np.float32)
                room[: len(values)] = values
                self._values[name] = room

    def take(self, users: Int32, told: Mapping[str, pa.ChunkedArray | pa.Array]) -> int:
        """Take the newest word on some users in the place of all that was said of them before.

        Args:
            users: int32[n], numbers, each once; there is room for them.
            told: string[n] by attribute, null where it says nothing; others are left out.

        Returns:
            of how many users something changed.
        """
        moved = np.zeros(len(users), dtype=np.bool_)
        for feature in self.features:
            column = told.get(feature.attribute)
            fresh = np.full(len(users), np.nan, np.float32)
            if column is not None:
                fresh = self._numbers(feature, column)
            values = self._values[feature.name]
            before = values[users]
            moved |= (before != fresh) & ~(np.isnan(before) & np.isnan(fresh))
            values[users] = fresh
        return int(moved.sum())

    def save(self, folder: Path, n: int | None = None) -> None:
        """Write into an existing folder, of the first n users: JSON and safetensors."""
        if not self.features:
            return
        labels = {name: list(words.labels) for name, words in self._vocabularies.items()}
        (folder / _LABELS).write_text(json.dumps(labels) + "\n", encoding="utf-8")
        arrays = {name: np.ascontiguousarray(each[:n]) for name, each in self._values.items()}
        save_file(arrays, folder / _VALUES)

    @classmethod
    def load(cls, folder: Path, plan: FeaturePlan, n: int) -> UserAttributes:
        """Read what `save` wrote for a plan; of n users at least."""
        features = attributes_read(plan)
        if not features:
            return cls((), n)
        labels = json.loads((folder / _LABELS).read_text(encoding="utf-8"))
        words = {name: Vocabulary(tuple(each)) for name, each in labels.items()}
        found = cls(features, 0, words)
        found._values = {name: each.copy() for name, each in load_file(folder / _VALUES).items()}
        found.grow(n)
        return found

    def _numbers(self, feature: UserAttribute, column: pa.ChunkedArray | pa.Array) -> Float32:
        """What an attribute says, as numbers: float32[n]."""
        if not isinstance(column, pa.ChunkedArray):
            column = pa.chunked_array([column], pa.string())
        if feature.read_as == "number":
            return as_numbers(column)
        words = self._vocabularies.get(feature.name, Vocabulary(()))
        unseen = len(words.labels) if feature.unseen == "own" else -1
        codes = words.encode(column, unseen)[0]
        return np.where(codes < 0, np.nan, codes).astype(np.float32)


def attributes_read(plan: FeaturePlan) -> list[UserAttribute]:
    """The plan's features that read an attribute of the user."""
    return [feature for feature in plan.features if isinstance(feature, UserAttribute)]


def as_numbers(column: pa.ChunkedArray) -> Float32:
    """Texts that read as a finite number, as that; NaN for all else: float32[n]."""
    texts = pl.Series(column, dtype=pl.String).str.strip_chars()
    values = texts.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    return np.where(np.isfinite(found), found, np.float32(np.nan))


def texts_of(plan: FeaturePlan, told: pa.Table) -> pa.Table:
    """`user_id`, and a column of texts for each attribute that is read: what `fit` wants.

    Args:
        plan: its features of the kind `user_attribute` are read.
        told: `schema.USERS`.
    """
    columns = {"user_id": told["user_id"]}
    for feature in attributes_read(plan):
        # of what is told twice of one user, the last
        name = pa.scalar(feature.attribute, pa.string())
        columns[feature.attribute] = pc.map_lookup(told["attributes"], name, "last")
    return pa.table(columns)


def require_attributes(plan: FeaturePlan, told: pa.Table) -> None:
    """Look for users who have what a plan reads.

    Args:
        plan, told: see `texts_of`.

    Raises:
        UserError: an attribute that no user has.
    """
    texts = texts_of(plan, told)
    for feature in attributes_read(plan):
        if texts[feature.attribute].null_count == len(texts):
            raise UserError(
                f"no user has the attribute {feature.attribute!r}",
                where=f"plan: feature {feature.name}",
                mend=_offered(told["attributes"]),
            )


def _offered(maps: pa.ChunkedArray) -> str:
    """Which attributes there are."""
    keys: set[str] = set()
    for chunk in maps.chunks:
        keys |= set(pc.unique(chunk.keys).to_pylist())
    if not keys:
        return "give `users` in the YAML of `raysys ingest`, or leave the feature out"
    return f"users have {', '.join(sorted(keys)[:40])}"

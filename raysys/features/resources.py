"""What a plan reads beside events and catalogue: vectors of items and queries, position bias."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.plan import Component, FeaturePlan, VectorSpec
from raysys.features.vector_files import Matrix, Vectors, read_vectors

Float64 = npt.NDArray[np.float64]

__all__ = [
    "Matrix",
    "Resources",
    "Vectors",
    "check_resources",
    "encoders_in",
    "files_of",
    "load_resources",
]

_ENCODER = "encoder"
"""Of the metadata of a file of vectors: the folder beside it with the model that made them."""


@dataclass(frozen=True)
class Resources:
    """The arrays that a plan names.

    Attributes:
        vectors: by name.
        examination: float64[p], chance that the item at position 1 … p is looked at at all.
    """

    vectors: Mapping[str, Vectors] = field(default_factory=dict)
    examination: Float64 = field(default_factory=lambda: np.ones(0))

    def save(self, folder: Path) -> None:
        """Write into an existing folder, as safetensors."""
        save_file({"examination": self.examination}, folder / "examination.safetensors")
        kept: dict[Path, str] = {}  # several spaces may be of one model
        for name, space in self.vectors.items():
            arrays: dict[str, Any] = {"items": np.ascontiguousarray(space.items)}
            if space.queries is not None:
                arrays["queries"] = np.ascontiguousarray(space.queries)
            told = None
            if space.encoder is not None:
                if space.encoder not in kept:
                    kept[space.encoder] = f"{_ENCODER}-{name}"
                    shutil.copytree(space.encoder, folder / kept[space.encoder])
                told = {_ENCODER: kept[space.encoder]}
            save_file(arrays, folder / f"vectors-{name}.safetensors", told)

    @classmethod
    def load(cls, folder: Path, *, spaces: bool = True) -> Resources:
        """Read what `save` wrote; without vectors where `spaces` is false."""
        vectors = {}
        for path in sorted(folder.glob("vectors-*.safetensors")) if spaces else ():
            arrays, encoder = load_file(path), _encoder_of(path)
            name = path.stem.removeprefix("vectors-")
            vectors[name] = Vectors(arrays["items"], arrays.get("queries"), encoder)
        return cls(vectors, load_file(folder / "examination.safetensors")["examination"])


def encoders_in(folder: Path) -> dict[str, Path]:
    """Folders of the models that made vectors, by the vectors' name, where `save` wrote them."""
    found = {
        path.stem.removeprefix("vectors-"): _encoder_of(path)
        for path in sorted(folder.glob("vectors-*.safetensors"))
    }
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def _encoder_of(path: Path) -> Path | None:
    with safe_open(path, framework="numpy") as file:
        told = file.metadata() or {}
    return path.parent / told[_ENCODER] if _ENCODER in told else None


def files_of(plan: FeaturePlan) -> dict[str, str]:
    """The files that a plan names, by what for: `vectors.NAME`, `examination`."""
    files = {
        f"vectors.{name}": spec.file
        for name, spec in plan.vectors.items()
        if isinstance(spec, VectorSpec)
    }
    if isinstance(plan.examination, str) and plan.examination:
        files["examination"] = plan.examination
    return files


def load_resources(
    plan: FeaturePlan,
    root: Path,
    *,
    made: Mapping[str, Vectors] | None = None,
    catalogue: Catalogue | None = None,
    queries: Sequence[str] = (),
) -> Resources:
    """Read the files that a plan names.

    Args:
        plan: its `vectors` and `examination`.
        root: the folder that relative paths start from.
        made: the vectors that are made from texts, by name.
        catalogue: numbers the items of files that name them.
        queries: normalised text by query number, for files that name queries.

    Raises:
        UserError: a file that is missing, or does not hold what is needed.
    """
    vectors = dict(made or {})
    for name, spec in plan.vectors.items():
        if isinstance(spec, VectorSpec):
            vectors[name] = read_vectors(name, spec, root, catalogue, queries)
    return Resources(vectors, _read_examination(plan, root))


def check_resources(
    plan: FeaturePlan, resources: Resources, n_items: int, n_queries: int
) -> Resources:
    """The resources, when they fit the plan, the catalogue and the queries.

    Raises:
        UserError: naming what is missing or of the wrong size.
    """
    for name in plan.vectors:
        space = resources.vectors.get(name)
        if space is None:
            raise UserError(
                f"vectors {name!r} were not given",
                where=f"plan: vectors.{name}",
                mend="pass `load_resources(plan, folder)`, with what is made from texts",
            )
        for what, matrix, rows in (
            ("items", space.items, n_items),
            ("queries", space.queries, n_queries),
        ):
            if matrix is not None and len(matrix) != rows:
                raise UserError(
                    f"{len(matrix):,} vectors of {what}, but there are {rows:,} {what}",
                    where=f"plan: vectors.{name}",
                    mend="a matrix fits the very catalogue and log that it was made of: give a "
                    "Parquet file with item_id (or query) and vector, which fits any; or let "
                    "`model` make them from texts",
                )
    for feature in plan.features:
        if isinstance(feature, Component):
            width = resources.vectors[feature.vectors].items.shape[1]
            if feature.component >= width:
                raise UserError(
                    f"component {feature.component} of vectors with {width}",
                    where=f"plan: feature {feature.name}",
                    mend=f"components are 0 to {width - 1}",
                )
    if plan.examination and not len(resources.examination):
        if isinstance(plan.examination, str):
            raise UserError(
                "the file of position bias was not read",
                where="plan: examination",
                mend="pass `load_resources(plan, folder)`",
            )
        return Resources(resources.vectors, np.array(plan.examination, dtype=np.float64))
    return resources


def _read_examination(plan: FeaturePlan, root: Path) -> Float64:
    if not plan.examination:
        return np.ones(0)
    if not isinstance(plan.examination, str):
        return np.array(plan.examination, dtype=np.float64)
    path, where = root / plan.examination, "plan: examination"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"no file {str(path)!r}",
            where=where,
            mend="write it, or let `position_bias` of `raysys features` write position_bias.json",
        ) from None
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON: {error}", where=where) from None
    curve = content.get("examination") if isinstance(content, dict) else content
    numbers = isinstance(curve, list) and all(isinstance(p, int | float) for p in curve)
    if not numbers or not curve or not all(0 < p < np.inf for p in curve):
        raise UserError(
            f"{str(path)!r} holds no curve of position bias",
            where=where,
            mend='a list of numbers above 0 by position, or {"examination": [...]}',
        )
    return np.array(curve, dtype=np.float64)

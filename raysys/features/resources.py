"""What a plan reads beside events and catalogue: vectors of items and queries, position bias."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from raysys.errors import UserError
from raysys.features.plan import Component, FeaturePlan
from raysys.features.plan_tables import VectorSpec

Float64 = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """A space in which items lie, and perhaps queries.

    Attributes:
        items: float16 or float32[n_items, d]; a row of zeros for an item without a vector.
        queries: the same of the log's queries, float[n_queries, d]; or None.
    """

    items: Matrix
    queries: Matrix | None = None


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
        for name, space in self.vectors.items():
            arrays: dict[str, Any] = {"items": np.ascontiguousarray(space.items)}
            if space.queries is not None:
                arrays["queries"] = np.ascontiguousarray(space.queries)
            save_file(arrays, folder / f"vectors-{name}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Resources:
        """Read what `save` wrote."""
        vectors = {}
        for path in sorted(folder.glob("vectors-*.safetensors")):
            arrays = load_file(path)
            vectors[path.stem.removeprefix("vectors-")] = Vectors(
                arrays["items"], arrays.get("queries")
            )
        return cls(vectors, load_file(folder / "examination.safetensors")["examination"])


def files_of(plan: FeaturePlan) -> dict[str, str]:
    """The files that a plan names, by what for: `vectors.NAME`, `examination`."""
    files = {f"vectors.{name}": spec.file for name, spec in plan.vectors.items()}
    if isinstance(plan.examination, str) and plan.examination:
        files["examination"] = plan.examination
    return files


def load_resources(plan: FeaturePlan, root: Path) -> Resources:
    """Read the files that a plan names.

    Args:
        plan: its `vectors` and `examination`.
        root: the folder that relative paths start from.

    Raises:
        UserError: a file that is missing, or does not hold what is needed.
    """
    vectors = {name: _read_vectors(name, spec, root) for name, spec in plan.vectors.items()}
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
                mend="pass `load_resources(plan, folder)`",
            )
        for what, matrix, rows in (
            ("items", space.items, n_items),
            ("queries", space.queries, n_queries),
        ):
            if matrix is not None and len(matrix) != rows:
                raise UserError(
                    f"{len(matrix):,} vectors of {what}, but there are {rows:,} {what}",
                    where=f"plan: vectors.{name}",
                    mend="make them from the catalogue and the log that the features are made of",
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


def _read_vectors(name: str, spec: VectorSpec, root: Path) -> Vectors:
    path, where = root / spec.file, f"plan: vectors.{name}"
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}", where=where, mend="write it, or correct `file`")
    found: dict[str, Any] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            held = sorted(file.keys())
            for role, tensor in (("items", spec.items), ("queries", spec.queries)):
                if tensor is not None:
                    if tensor not in held:
                        offered = ", ".join(held) or "none"
                        raise UserError(
                            f"no tensor {tensor!r} in {str(path)!r}",
                            where=where,
                            mend=f"`{role}`: one of {offered}",
                        )
                    found[role] = file.get_tensor(tensor)
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} is not safetensors: {error}", where=where) from None
    for role, matrix in found.items():
        if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32):
            raise UserError(
                f"{role}: {matrix.dtype}[{', '.join(map(str, matrix.shape))}]",
                where=where,
                mend="write a matrix float16 or float32[rows, dimensions]",
            )
        if not np.isfinite(matrix).all():
            raise UserError(f"{role}: some numbers are not finite", where=where)
    if "queries" in found and found["queries"].shape[1] != found["items"].shape[1]:
        raise UserError(
            f"items have {found['items'].shape[1]} dimensions, queries {found['queries'].shape[1]}",
            where=where,
        )
    return Vectors(found["items"], found.get("queries"))


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

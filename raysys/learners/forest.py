"""Trees as arrays and one compiled walk over them: what the libraries say, to the last bit, sooner.

A library's call is made for many rows; of a request's hundred it spends most of the time waiting
for one comparison before the next. Here the children of a node lie side by side and a leaf leads
to itself, so that a step has no branch to guess and the processor walks several rows at once
(branch-free traversal: Asadi, Lin & de Vries 2014, Runtime Optimizations for Tree-based Machine
Learning Models). Thresholds are rounded down to float32, which says the same of a float32.

What this does not know (categories, linear leaves, zeros as missing) stays with the library, and a
forest is only used after it gave the library's own bits for rows drawn around its thresholds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

log = logging.getLogger("raysys")

Float32 = npt.NDArray[np.float32]
Float = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[Any]

_PROBES = 64
_NAN_OF_LIGHTGBM, _NONE_OF_LIGHTGBM = 2, 0  # kinds of missing values, bits 2 and 3
_DEFAULT_LEFT, _KIND = 2, 12
_MOST = np.finfo(np.float32).max
_ZERO_OF_LIGHTGBM = np.float32(1e-35)
"""What is nearer to 0 is 0 to LightGBM."""


@dataclass(frozen=True)
class Forest:
    """Trees of one output; safe to use from several threads.

    Attributes:
        feature: uint32[m], the column that each node asks for, plus `width` where NaN goes right:
            a row lies there twice, with NaN as -inf, then with NaN as inf. 0 in leaves.
        threshold: float32[m]; above it one goes right. NaN in leaves: nobody does.
        child: uint32[m], the left child, the right one is next to it; in leaves the node itself.
        value: float[m] of leaves, 0 elsewhere; its dtype is what the library adds up in.
        roots: uint32[t]; depths: int64[t], steps to the deepest leaf.
        base: what the sum begins with.
        width: columns of rows.
    """

    feature: npt.NDArray[np.uint32]
    threshold: Float32
    child: npt.NDArray[np.uint32]
    value: Float
    roots: npt.NDArray[np.uint32]
    depths: npt.NDArray[np.int64]
    base: float
    width: int

    def score(self, rows: Float32) -> Float:
        """Sums of leaves, float[n] in the dtype of `value`, of float32[n, width] rows.

        Raises:
            ValueError: rows of another width.
        """
        if rows.shape[1:] != (self.width,):
            raise ValueError(f"rows of shape {rows.shape} for trees of {self.width} columns")
        out = np.full(len(rows), self.base, dtype=self.value.dtype)
        _walk(
            *(np.ascontiguousarray(rows, dtype=np.float32), self.feature, self.threshold),
            *(self.child, self.value, self.roots, self.depths, out),
        )
        return out

    def agrees(self, predict: Callable[[Float32], Float]) -> bool:
        """Whether it gives a library's bits for float32[64, f] rows around its thresholds."""
        rng, width = np.random.default_rng(0), self.width
        rows = np.zeros((_PROBES, width), dtype=np.float32)
        inner = np.flatnonzero(~np.isnan(self.threshold))
        for column in range(width):
            known = self.threshold[inner[self.feature[inner] % width == column]]
            if len(known):
                drawn = rng.choice(known, _PROBES)
                with np.errstate(over="ignore"):
                    above = np.nextafter(drawn, np.float32(np.inf))
                rows[:, column] = np.where(rng.random(_PROBES) < 0.5, drawn, above)
        rows[rng.random(rows.shape) < 0.15] = np.nan
        rows[0], rows[1] = np.nan, 0.0
        theirs = np.asarray(predict(rows))
        return theirs.shape == (_PROBES,) and bool((theirs == self.score(rows)).all())


@njit(cache=True, nogil=True)
def _walk(rows, feature, threshold, child, value, roots, depths, out):  # type: ignore[no-untyped-def]
    n, width = rows.shape
    block = 128  # rows that stay in the first cache while all trees pass by
    sides = np.empty((min(n, block), 2 * width), dtype=np.float32)
    at = np.empty(len(sides), dtype=np.uint32)
    for start in range(0, n, block):
        some = min(block, n - start)
        for row in range(some):
            for column in range(width):
                x = rows[start + row, column]
                unknown = x != x
                known = min(x, _MOST)  # infinity is below NaN's
                sides[row, column] = -np.inf if unknown else known
                sides[row, width + column] = np.inf if unknown else known
        for tree in range(len(roots)):
            for row in range(some):
                at[row] = roots[tree]
            for _ in range(depths[tree]):  # all rows a level down: none waits for another
                for row in range(some):
                    node = np.uint64(at[row])
                    x = sides[np.uint64(row), np.uint64(feature[node])]
                    at[row] = child[node] + np.uint32(x > threshold[node])
            for row in range(some):
                out[start + row] += value[np.uint64(at[row])]


def forest_of(
    make: Callable[[], Forest | None], predict: Callable[[Float32], Float]
) -> Forest | None:
    """A forest that gives the library's bits; None where there is none, and the library answers.

    Args:
        make: reads the library's model.
        predict: what the library says of float32[n, f] rows.
    """
    try:
        forest = make()
        if forest is not None and forest.agrees(predict):
            return forest
    except (KeyError, ValueError, IndexError) as error:  # a format that has moved on
        log.info("trees are left to their library: %r", error)
    return None


def of_lightgbm(text: str) -> Forest | None:
    """Trees in LightGBM's text format; None: they hold what only LightGBM knows.

    Raises:
        KeyError, ValueError: another format than ours.
    """
    head, _, rest = text.partition("\nTree=")
    if "\nnum_tree_per_iteration=1\n" not in head or "average_output" in head:
        return None
    trees = []
    for block in rest.partition("\nend of trees")[0].split("\nTree="):
        said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if int(said["num_cat"]) or int(said.get("is_linear", 0)):
            return None
        leaves = np.array(said["leaf_value"].split(), dtype=np.float64)
        if len(leaves) == 1:
            trees.append(_Tree.leaf(leaves))
            continue
        names = ("split_feature", "left_child", "right_child", "decision_type")
        feature, left, right, decision = (np.array(said[n].split(), np.int64) for n in names)
        threshold = np.array(said["threshold"].split(), dtype=np.float64)
        kind = (decision & _KIND) >> 2
        beyond = (threshold >= _MOST) & np.isfinite(threshold)
        if not np.isin(kind, (_NONE_OF_LIGHTGBM, _NAN_OF_LIGHTGBM)).all() or beyond.any():
            return None
        # without a kind of missing values, NaN counts as 0
        lost = np.where(kind == _NAN_OF_LIGHTGBM, decision & _DEFAULT_LEFT == 0, threshold < 0)
        inner = len(feature)
        trees.append(
            _Tree(
                feature=np.concatenate([feature, np.zeros(len(leaves), np.int64)]),
                threshold=np.concatenate([_of_float32(threshold), _nan(len(leaves))]),
                # leaf i is called ~i, and comes after the inner nodes
                left=np.concatenate([np.where(left >= 0, left, inner + ~left), _self(leaves)]),
                right=np.concatenate([np.where(right >= 0, right, inner + ~right), _self(leaves)]),
                lost=np.concatenate([lost, np.zeros(len(leaves), bool)]),
                value=np.concatenate([np.zeros(inner), leaves]),
            )
        )
    width = int(_line(head, "max_feature_idx")) + 1
    return _joined(trees, 0.0, np.float64, width)


def of_xgboost(content: Mapping[str, Any] | bytes) -> Forest | None:
    """Trees in XGBoost's JSON; None: they hold what only XGBoost knows.

    Raises:
        KeyError, ValueError: another format than ours.
    """
    said = json.loads(content) if isinstance(content, bytes | bytearray) else content
    learner = said["learner"]
    booster, facts = learner["gradient_booster"], learner["learner_model_param"]
    if booster["name"] != "gbtree" or int(facts["num_class"]) > 1 or int(facts["num_target"]) > 1:
        return None
    if not str(learner["objective"]["name"]).startswith("rank:"):
        return None  # its base score may be on another scale than the margin
    trees = []
    for tree in booster["model"]["trees"]:
        if any(tree["split_type"]) or int(tree["tree_param"]["size_leaf_vector"]) > 1:
            return None
        left = np.array(tree["left_children"], np.int64)
        right = np.array(tree["right_children"], np.int64)
        condition = np.array(tree["split_conditions"], np.float32)
        leaf = left < 0
        if not np.isfinite(condition[~leaf]).all():
            return None
        below = np.nextafter(condition, np.float32(-np.inf))  # x < c, of float32
        trees.append(
            _Tree(
                feature=np.where(leaf, 0, np.array(tree["split_indices"], np.int64)),
                threshold=np.where(leaf, np.float32(np.nan), below),
                left=left,
                right=right,
                lost=~leaf & (np.array(tree["default_left"], np.int64) == 0),
                value=np.where(leaf, condition, 0.0),
            )
        )
    base = np.float32(str(facts["base_score"]).strip("[]"))
    return _joined(trees, float(base), np.float32, int(facts["num_feature"]))


@dataclass(frozen=True)
class _Tree:
    """One tree, nodes in any order but the root first; leaves have no children."""

    feature: Numbers
    threshold: Numbers
    left: Numbers
    right: Numbers
    lost: Numbers
    value: Numbers

    @classmethod
    def leaf(cls, value: Numbers) -> _Tree:
        nothing = np.zeros(1, np.int64)
        return cls(nothing, _nan(1), _self(value), _self(value), nothing.astype(bool), value)


def _joined(trees: Sequence[_Tree], base: float, dtype: Any, width: int) -> Forest:
    """All trees behind each other, level by level, siblings side by side."""
    orders, children, depths, roots = [], [], [], []
    total = 0
    for tree in trees:
        level, order, depth = np.zeros(1, np.int64), [], 0
        child: list[Numbers] = []
        at = total  # where this level begins
        while len(level):
            inner = tree.left[level] >= 0
            after = at + len(level)
            place = after + 2 * (np.cumsum(inner) - 1)
            child.append(np.where(inner, place, at + np.arange(len(level))))
            order.append(level)
            parents = level[inner]
            level = np.stack([tree.left[parents], tree.right[parents]], axis=1).ravel()
            depth += bool(len(level))
            at = after
        roots.append(total)
        depths.append(depth)
        orders.append(np.concatenate(order))
        children.append(np.concatenate(child))
        total += len(orders[-1])

    def joined(name: str, kind: Any) -> Numbers:
        parts = [getattr(t, name)[order] for t, order in zip(trees, orders, strict=True)]
        return np.concatenate([*parts, np.empty(0)]).astype(kind)

    return Forest(
        feature=(joined("feature", np.int64) + width * joined("lost", np.int64)).astype(np.uint32),
        threshold=joined("threshold", np.float32),
        child=np.concatenate([*children, np.empty(0)]).astype(np.uint32),
        value=joined("value", dtype),
        roots=np.array(roots, dtype=np.uint32),
        depths=np.array(depths, dtype=np.int64),
        base=base,
        width=width,
    )


def _line(text: str, name: str) -> str:
    """What a line `name=…` says."""
    return text.partition(f"\n{name}=")[2].partition("\n")[0]


def _of_float32(threshold: Numbers) -> Float32:
    """float64 thresholds of LightGBM so that a float32 as it comes says what it says there."""
    near, below = threshold.astype(np.float32), np.float32(-np.inf)
    # the largest float32 that is not above: a float32 is above both or above neither
    rounded = np.where(near > threshold, np.nextafter(near, below), near)
    rounded = np.minimum(rounded, _MOST)  # of infinity, which parts NaN from all others
    tiny = np.abs(rounded) <= _ZERO_OF_LIGHTGBM
    around = np.where(threshold < 0, np.nextafter(-_ZERO_OF_LIGHTGBM, below), _ZERO_OF_LIGHTGBM)
    return np.where(tiny, around, rounded).astype(np.float32)


def _nan(n: int) -> Float32:
    return np.full(n, np.nan, dtype=np.float32)


def _self(leaves: Numbers) -> Numbers:
    """A leaf has no children."""
    return np.full(len(leaves), -1, dtype=np.int64)

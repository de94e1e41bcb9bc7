"""Drift: how far each feature's distribution moved between two periods.

- Population stability index (PSI): Σ (p − q) ln (p ÷ q) over bins, p and q the shares of the two
  periods: the symmetrised Kullback–Leibler divergence (Jeffreys 1946), 0 when nothing moved. Bins
  of numbers are quantiles of the reference; missing values are a bin of their own. The usual
  words: below 0.1 stable, to 0.25 moderate, above large (Siddiqi 2006).
- What PSI comes to by chance alone: (bins − 1) (1/n + 1/m) on average, distributed as χ² (Yurdakul
  and Naranjo 2020). A PSI below its 95% point is called stable, whatever its size.
- Two-sample Kolmogorov–Smirnov statistic: the largest gap between the two distribution functions,
  of numbers that are not missing, with its asymptotic p-value.

Rows of one request resemble each other, so n and m are counted in requests, not in rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from raysys.errors import UserError
from raysys.features.plan import FeaturePlan, Static, UserAttribute

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

MODERATE: Final = 0.1
LARGE: Final = 0.25
BINS: Final = 10
CODES: Final = 20  # codes of a categorical feature with a bin of their own; the rest share one
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
ROWS: Final = 20_000  # aim for the rows of a sample
_OTHER: Final = "other"
_MISSING: Final = "missing"


@dataclass(frozen=True)
class Sample:
    """Rows drawn from the candidates of a period.

    Attributes:
        names: the features; values: float32[n, f], NaN where missing.
        requests: how many requests they come from, about the same number of rows from each.
        words: the period in words.
    """

    names: tuple[str, ...]
    values: Float32
    requests: int
    words: str = ""


@dataclass(frozen=True)
class Histogram:
    """Shares of both periods over the bins that PSI is counted on.

    Attributes:
        labels: of the bins, the last one `missing`.
        reference, current: shares that add up to 1, before smoothing.
    """

    labels: tuple[str, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


@dataclass(frozen=True)
class Moments:
    """One period of a feature; None where all values are missing.

    Attributes:
        missing: share in [0, 1].
        mean: of the others; quantiles: of the others, at `QUANTILES`.
    """

    missing: float
    mean: float | None
    quantiles: tuple[float, ...] | None


@dataclass(frozen=True)
class Drift:
    """How far a feature moved.

    Attributes:
        feature: its name.
        categorical: codes, for which neither order nor mean says anything.
        psi: population stability index; chance: the 95% point of what it is without any drift.
        ks: Kolmogorov–Smirnov statistic in [0, 1], p: its p-value; None for a categorical feature,
            or when a period has no value.
        shift: difference of the means in standard deviations of the reference; None as for `ks`,
            or when the reference does not vary.
        reference, current: both periods.
        histogram: the shares that PSI compares.
    """

    feature: str
    categorical: bool
    psi: float
    chance: float
    ks: float | None
    p: float | None
    shift: float | None
    reference: Moments
    current: Moments
    histogram: Histogram

    @property
    def level(self) -> str:
        """`stable`, `moderate` or `large`, by PSI; stable too if chance explains it."""
        if self.psi < MODERATE or self.psi <= self.chance:
            return "stable"
        return "moderate" if self.psi < LARGE else "large"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {**asdict(self), "level": self.level}


@dataclass(frozen=True)
class Cut:
    """Bins of one feature, as its reference has them; the last one is for what is missing.

    Attributes:
        ends: float32[b], rising. Of numbers: the upper ends of all bins but the last, which has
            none. Of codes: those with a bin of their own; the others share one more.
        categorical: the values are codes.
    """

    ends: Float32
    categorical: bool = False

    @classmethod
    def of(cls, reference: Float32, categorical: bool = False) -> Cut:
        """Bins of a reference, float32[n], NaN where missing: quantiles, or its frequent codes."""
        known = reference[~np.isnan(reference)]
        if not categorical:
            return cls(_edges(known))
        codes, count = np.unique(known + np.float32(0), return_counts=True)  # not -0
        return cls(np.sort(codes[np.lexsort((codes, -count))][:CODES]), categorical=True)

    @property
    def bins(self) -> int:
        """How many there are, with that for what is missing."""
        return len(self.ends) + 2

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the bins, the last one `missing`."""
        if self.categorical:
            return (*(f"{code:g}" for code in self.ends), _OTHER, _MISSING)
        if not len(self.ends):
            return ("any", _MISSING)
        ends = [f"{edge:.4g}" for edge in self.ends]
        return (f"≤ {ends[0]}", *(f"≤ {end}" for end in ends[1:]), f"> {ends[-1]}", _MISSING)

    def place(self, values: Float32) -> Int64:
        """The bin of each value: int64[n]."""
        if self.categorical:
            places = _place_of_code(values, self.ends)
        else:
            places = np.searchsorted(self.ends, values, side="left")
        return np.where(np.isnan(values), self.bins - 1, places)


def compare(
    reference: Sample, current: Sample, categorical: frozenset[str] = frozenset()
) -> list[Drift]:
    """Drift of every feature that both samples have, largest PSI first.

    Raises:
        UserError: a sample without rows, or no feature in common.
    """
    common = [name for name in reference.names if name in current.names]
    if not common:
        raise UserError("the two periods have no feature in common", where="drift")
    for sample in (reference, current):
        if not len(sample.values):
            raise UserError("no request in this period", where=f"drift: {sample.words}")
    n = (reference.requests, current.requests)
    found = [
        drift_of(
            name,
            reference.values[:, reference.names.index(name)],
            current.values[:, current.names.index(name)],
            n,
            categorical=name in categorical,
        )
        for name in common
    ]
    return sorted(found, key=lambda drift: (-drift.psi, drift.feature))


def drift_of(
    name: str,
    reference: Float32,
    current: Float32,
    requests: tuple[int, int] | None = None,
    *,
    categorical: bool = False,
) -> Drift:
    """Drift of one feature.

    Args:
        name: of the feature.
        reference, current: float32[n], float32[m], NaN where missing; at least one row each.
        requests: independent observations of each; the rows if left out.
        categorical: the values are codes.
    """
    n, m = requests or (len(reference), len(current))
    labels, counts = _binned(reference, current, categorical)
    p, q = (count / count.sum() for count in counts)
    used = int(((p > 0) | (q > 0)).sum())
    old, new = (values[~np.isnan(values)].astype(np.float64) for values in (reference, current))
    ks = p_value = shift = None
    if not categorical and len(old) and len(new):
        share = (len(old) / len(reference), len(new) / len(current))
        ks, p_value = kolmogorov_smirnov(old, new, (n * share[0], m * share[1]))
        deviation = old.std()
        shift = float((new.mean() - old.mean()) / deviation) if deviation > 0 else None
    return Drift(
        feature=name,
        categorical=categorical,
        psi=population_stability_index(p, q, 0.5 / min(len(reference), len(current))),
        chance=by_chance(used, n, m),
        ks=ks,
        p=p_value,
        shift=shift,
        reference=_moments(reference, old),
        current=_moments(current, new),
        histogram=Histogram(labels, tuple(map(float, p)), tuple(map(float, q))),
    )


def population_stability_index(p: Float64, q: Float64, epsilon: float = 1e-4) -> float:
    """Σ (p − q) ln (p ÷ q) over bins; 0 for equal shares, else above; the same with p, q swapped.

    Args:
        p, q: shares, each adding up to 1.
        epsilon: an empty bin counts as so large a share (then shares are scaled to 1 again); half a
            row of the smaller sample is a good choice. Bins that are empty in both count nothing.
    """
    there = (p > 0) | (q > 0)
    one, other = (np.maximum(shares[there], epsilon) for shares in (p, q))
    one, other = one / one.sum(), other / other.sum()
    return float(((one - other) * np.log(one / other)).sum())


def by_chance(bins: int, n: float, m: float) -> float:
    """The 95% point of PSI over so many bins when nothing drifts, of n and m observations."""
    return float(stats.chi2.ppf(0.95, max(1, bins - 1)) * (1 / n + 1 / m))


def kolmogorov_smirnov(
    reference: Float64, current: Float64, sizes: tuple[float, float] | None = None
) -> tuple[float, float]:
    """The two-sample statistic and its asymptotic two-sided p-value.

    Args:
        reference, current: float64[n], float64[m], none missing.
        sizes: independent observations of each for the p-value; n and m if left out.
    """
    with np.errstate(divide="ignore"):  # in a p-value of scipy's that is not used
        statistic = float(stats.ks_2samp(reference, current, method="asymp").statistic)
    n, m = sizes or (len(reference), len(current))
    effective = max(1, round(n * m / (n + m)))  # as scipy rounds it
    return statistic, float(np.clip(stats.kstwo.sf(statistic, effective), 0, 1))


def categorical_features(plan: FeaturePlan) -> frozenset[str]:
    """Features whose values are codes of labels: of a column of the catalogue, or of users."""
    return frozenset(
        feature.name
        for feature in plan.features
        if (isinstance(feature, Static) and feature.column != "price")
        or (isinstance(feature, UserAttribute) and feature.read_as == "label")
    )


def sample_rows(
    root: Path,
    requests: npt.NDArray[np.int32],
    files: Sequence[Path],
    *,
    seed: int = 0,
    rows: int = ROWS,
    words: str = "",
) -> Sample:
    """Draw retrieved candidates, equally many from each request.

    Which ones depends on request, item and seed alone, not on the order of the rows.

    Args:
        root: the features folder (for messages).
        requests: int32[r], ordinals of the requests of the period.
        files: Parquet files of examples in which they lie.
        seed: of the draw.
        rows: aim; when there are more requests than this, only so many of them are read.
        words: the period in words.

    Raises:
        UserError: no request.
    """
    if not len(requests):
        raise UserError("no request in this period", where=str(root), mend=f"drift: {words}")
    chosen = requests[np.argsort(_mix(requests.astype(np.int64), seed), kind="stable")][:rows]
    each = -(-rows // len(chosen))
    names: tuple[str, ...] = ()
    parts: list[Float32] = []
    seen: list[npt.NDArray[np.int32]] = []
    for path in files:
        keys = pq.read_table(path, columns=["request", "item", "retrieved"], partitioning=None)
        request, item = keys["request"].to_numpy(), keys["item"].to_numpy()
        wanted = np.isin(request, chosen) & keys["retrieved"].to_numpy()
        index = np.flatnonzero(wanted)
        chance = _mix(request[index].astype(np.int64) << 32 | item[index], seed)
        order = np.lexsort((chance, request[index]))
        group = request[index][order]
        start = np.searchsorted(group, group, side="left")
        index = index[order][np.arange(len(group)) - start < each]
        names = tuple(pq.read_schema(path).names[_n_keys() :])
        if not len(index):
            continue
        table = pq.read_table(path, columns=list(names), partitioning=None)
        table = table.take(pa.array(index))
        parts.append(np.stack([table[name].to_numpy() for name in names], axis=1))
        seen.append(np.unique(request[index]))
    values = np.concatenate(parts) if parts else np.empty((0, len(names)), np.float32)
    return Sample(names, values, sum(map(len, seen)), words)


def _n_keys() -> int:
    from raysys import schema

    return len(schema.EXAMPLE_KEYS)


def _binned(
    reference: Float32, current: Float32, categorical: bool
) -> tuple[tuple[str, ...], tuple[Float64, Float64]]:
    """Labels of the bins, and how many rows of each period lie in them; the last: missing."""
    cut = Cut.of(reference, categorical)
    old, new = (
        np.bincount(cut.place(values), minlength=cut.bins).astype(np.float64)
        for values in (reference, current)
    )
    return cut.labels, (old, new)


def _edges(known: Float32) -> Float32:
    """Upper ends of all bins but the last: each value where there are few, else quantiles."""
    if not len(known):
        return np.empty(0, np.float32)
    values = np.unique(known)
    if len(values) <= BINS:
        edges: Float32 = values[:-1] + np.float32(0)  # not -0
        return edges
    inner = np.arange(1, BINS) / BINS
    return np.unique(np.quantile(known, inner, method="inverted_cdf")) + np.float32(0)


def _place_of_code(values: Float32, top: Float32) -> Int64:
    """Number of each code's bin: its place in `top`, else the one after."""
    if not len(top):
        return np.zeros(len(values), dtype=np.int64)
    place = np.minimum(np.searchsorted(top, values), len(top) - 1)
    found: Int64 = np.where(top[place] == values, place, len(top))
    return found


def _moments(values: Float32, known: Float64) -> Moments:
    missing = float(np.isnan(values).mean())
    if not len(known):
        return Moments(missing, None, None)
    return Moments(missing, float(known.mean()), tuple(map(float, np.quantile(known, QUANTILES))))


def _mix(keys: Int64, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014) of keys: the same everywhere."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def counts(drifts: Sequence[Drift]) -> Mapping[str, int]:
    """How many features are at each level."""
    levels = [drift.level for drift in drifts]
    return {level: levels.count(level) for level in ("stable", "moderate", "large")}

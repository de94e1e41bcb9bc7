"""A search space as YAML says it: each setting's range or choices, and the check against a model.

learning_rate: {kind: float, low: 0.02, high: 0.3, log: true}
num_leaves: {kind: int, low: 7, high: 127, log: true}
objective: {kind: choice, choices: [ndcg, map]}
head.width: {kind: int, low: 32, high: 256}          a setting within a setting
data.negatives: {kind: choice, choices: [10, 20, 0]}  of the data, see `data.py`
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.learners.protocol import HoldsSettings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str | None
NAMESPACES = ("data", "features")
"""First parts of names that are no settings of the learner."""
LISTED = "list "
"""How a choice that is a list is told apart in Optuna's journal, which holds single values."""


class FloatRange(Settings):
    """A real number from `low` to `high`, both included; on a logarithmic scale with `log`."""

    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> FloatRange:
        _check_range(self.low, self.high, self.log, self.step is not None)
        return self

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> tuple[Any, ...]:
        """The values that a learner must accept for the whole range to make sense."""
        return (self.low, self.high)

    def grid(self, points: int) -> list[Scalar]:
        """Its steps, or so many points from end to end, evenly on its scale."""
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.low + at * self.step for at in range(count)]
        spaced = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(float(value) for value in spaced(self.low, self.high, points)))

    def moved(self, value: Any, factor: float) -> Scalar:
        """A value times a factor, within the range."""
        return self.nearest(float(value) * factor)

    def nearest(self, value: float) -> float:
        """The value of the range that lies nearest."""
        if self.step is None:
            return float(np.clip(value, self.low, self.high))
        last = math.floor((self.high - self.low) / self.step + 1e-9)
        return self.low + min(max(round((value - self.low) / self.step), 0), last) * self.step


class IntRange(Settings):
    """A whole number from `low` to `high`, both included; on a logarithmic scale with `log`."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> IntRange:
        _check_range(self.low, self.high, self.log, self.step != 1)
        return self

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> tuple[Any, ...]:
        """The values that a learner must accept for the whole range to make sense."""
        return (self.low, self.high)

    def grid(self, points: int) -> list[Scalar]:
        """Its steps where one is given, or so many points from end to end, evenly on its scale."""
        if self.step != 1:
            return list(range(self.low, self.high + 1, self.step))
        spaced = np.geomspace if self.log else np.linspace
        found = np.rint(spaced(self.low, self.high, points)).astype(int).tolist()
        return list(dict.fromkeys(found))

    def moved(self, value: Any, factor: float) -> Scalar:
        """A value times a factor, at least one step away, within the range."""
        away = max(self.step, round(abs(value * factor - value) / self.step) * self.step)
        return self.nearest(value + (away if factor > 1 else -away))

    def nearest(self, value: float) -> int:
        """The value of the range that lies nearest."""
        last = (self.high - self.low) // self.step
        return self.low + min(max(round((value - self.low) / self.step), 0), last) * self.step


class Choice(Settings):
    """One of several values, in no order; each may be a list of values or of mappings."""

    kind: Literal["choice"] = "choice"
    choices: tuple[Scalar | tuple[Scalar | dict[str, Any], ...], ...] = Field(min_length=1)

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self._single)

    def corners(self) -> tuple[Any, ...]:
        """The values that a learner must accept: all of them."""
        return tuple(plain(value) for value in self._single)

    def grid(self, points: int) -> list[Scalar]:
        """All of them."""
        return list(self._single)

    def moved(self, value: Any, factor: float) -> Scalar:
        """The next or the one before, as the factor is above or below 1."""
        at = self._single.index(value) + (1 if factor > 1 else -1)
        return self._single[at % len(self._single)]

    @property
    def _single(self) -> list[Scalar]:
        """The choices as single values."""
        return [single(value) for value in self.choices]


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]
Space = dict[str, Parameter]


def distributions(space: Mapping[str, Parameter]) -> dict[str, BaseDistribution]:
    """The space as Optuna takes it."""
    return {name: parameter.distribution() for name, parameter in space.items()}


def plain(value: Scalar) -> Any:
    """A value of Optuna's journal as settings take it: lists are lists again."""
    if isinstance(value, str) and value.startswith(LISTED):
        return json.loads(value.removeprefix(LISTED))
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name as settings within settings: {"head.width": 8} → {"head": {…}}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = plain(value)
    return found


def merged(fixed: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fixed settings with searched values, by dotted name, over them."""
    return overlaid(fixed, nested(values))


def overlaid(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them; of settings within settings, those that are given."""
    return dict(base) | {
        name: overlaid(base[name], value)
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        else value
        for name, value in more.items()
    }


def of_namespace(values: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """What of some values (or of a space) lies in a namespace, without its name.

    Args:
        values: by dotted name.
        namespace: one of `NAMESPACES`; empty: what lies in none, the learner's own.
    """
    if not namespace:
        others = tuple(f"{each}." for each in NAMESPACES)
        return {name: value for name, value in values.items() if not name.startswith(others)}
    return {
        name.removeprefix(f"{namespace}."): value
        for name, value in values.items()
        if name.startswith(f"{namespace}.")
    }


def grid(space: Mapping[str, Parameter], points: int, seed: int) -> Iterator[dict[str, Scalar]]:
    """Every combination, in an order drawn by the seed, so that a part of them is spread out."""
    values = [parameter.grid(points) for parameter in space.values()]
    sizes = [len(each) for each in values]
    for number in np.random.default_rng(seed).permutation(int(np.prod(sizes))):
        places = np.unravel_index(number, sizes)
        yield {name: each[int(at)] for name, each, at in zip(space, values, places, strict=True)}


def check_space(
    space: Mapping[str, Parameter],
    fixed: Mapping[str, Any],
    model: type[Settings],
    *,
    where: str,
) -> Settings:
    """Hold a space against a settings model before the first trial runs.

    Args:
        space: what is searched of this model; no namespaces but those of the model itself.
        fixed: what is not.
        model: the learner's settings model.
        where: names the YAML in errors.

    Returns:
        The settings a search starts from: `fixed`, and the model's defaults for the rest.

    Raises:
        UserError: a setting the model lacks, a bound or choice that it refuses, or a setting
            that is both fixed and searched.
    """
    start = parse_settings(model, dict(fixed), where=f"{where}: settings")
    for name, parameter in space.items():
        if _given(fixed, name):
            raise UserError(
                f"{name!r} is both fixed and searched",
                where=where,
                mend="remove it from `settings` or from `space`",
            )
        for value in parameter.corners():
            parse_settings(model, merged(fixed, {name: value}), where=f"{where}: space")
    return start


def unknown(what: str, name: str, known: Sequence[str], *, where: str) -> UserError:
    """The error for a name that is none of those known; names the nearest."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"{what} {name!r}{hint}", where=where, mend=f"there are {', '.join(known)}")


def starting_point(
    space: Mapping[str, Parameter],
    start: Settings,
    *,
    anywhere: bool = False,
    items: int | None = None,
) -> dict[str, Scalar] | None:
    """The model's own values of what is searched; None when one lies outside, unless `anywhere`.

    Args:
        space: what is searched.
        start: the model.
        anywhere: give values outside the space, too.
        items: how many the catalogue has, by which some settings go; None: unknown.
    """
    point: dict[str, Scalar] = {}
    for name in space:
        value: Any = start
        for part in name.split("."):
            value = _part(value, part, items)
        point[name] = single(value)
    return point if anywhere or inside(space, point) else None


def _part(value: Any, name: str, items: int | None) -> Any:
    """A setting of settings, whether they are a model's or as they were written."""
    if isinstance(value, Mapping):
        return value.get(name)
    within = value.within(name, items) if isinstance(value, HoldsSettings) else None
    return getattr(value, name, None) if within is None else within


def inside(space: Mapping[str, Parameter], point: Mapping[str, Any]) -> bool:
    """Whether a point has a value for every searched setting, each within its range."""
    for name, found in distributions(space).items():
        try:
            if name not in point or not found._contains(found.to_internal_repr(point[name])):
                return False
        except (ValueError, TypeError):
            return False
    return True


def single(value: Any) -> Scalar:
    """A setting's value as Optuna's journal holds it."""
    if isinstance(value, list | tuple):
        return LISTED + json.dumps(list(value), default=lambda each: each.model_dump(mode="json"))
    found: Scalar = value
    return found


def told(value: Any) -> str:
    """A value for people: null, numbers to four digits, of mappings in a list their kinds."""
    value = plain(value)
    if isinstance(value, list):
        return " + ".join(told(each) for each in value) or "none"
    if isinstance(value, Mapping):
        return str(value.get("kind", dict(value)))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def _given(fixed: Mapping[str, Any], name: str) -> bool:
    """Whether settings hold a value at a dotted name."""
    place: Any = fixed
    for part in name.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return False
        place = place[part]
    return True


def _check_range(low: float, high: float, log: bool, stepped: bool) -> None:
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic scale needs low above 0, not {low}")
    if log and stepped:
        raise ValueError("log and step exclude each other")

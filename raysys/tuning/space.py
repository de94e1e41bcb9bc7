"""A search space as YAML says it: each setting's range or choices, and the check against a learner.

learning_rate: {kind: float, low: 0.02, high: 0.3, log: true}
num_leaves: {kind: int, low: 7, high: 127, log: true}
objective: {kind: choice, choices: [ndcg, map]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from raysys.config import Settings, parse_settings
from raysys.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str | None


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

    def corners(self) -> tuple[Scalar, ...]:
        """The values that a learner must accept for the whole range to make sense."""
        return (self.low, self.high)


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

    def corners(self) -> tuple[Scalar, ...]:
        """The values that a learner must accept for the whole range to make sense."""
        return (self.low, self.high)


class Choice(Settings):
    """One of several values, in no order."""

    kind: Literal["choice"] = "choice"
    choices: tuple[Scalar, ...] = Field(min_length=1)

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)

    def corners(self) -> tuple[Scalar, ...]:
        """The values that a learner must accept: all of them."""
        return self.choices


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]
Space = dict[str, Parameter]


def distributions(space: Mapping[str, Parameter]) -> dict[str, BaseDistribution]:
    """The space as Optuna takes it."""
    return {name: parameter.distribution() for name, parameter in space.items()}


def check_space(
    space: Mapping[str, Parameter],
    fixed: Mapping[str, Any],
    model: type[Settings],
    *,
    where: str,
) -> Settings:
    """Hold a space against a learner's settings model before the first trial runs.

    Args:
        space: what is searched.
        fixed: what is not.
        model: the learner's settings model.
        where: names the YAML in errors.

    Returns:
        The settings a search starts from: `fixed`, and the learner's defaults for the rest.

    Raises:
        UserError: a setting the learner lacks, a bound or choice that it refuses, or a setting
            that is both fixed and searched.
    """
    start = parse_settings(model, dict(fixed), where=f"{where}: settings")
    for name, parameter in space.items():
        if name in fixed:
            raise UserError(
                f"{name!r} is both fixed and searched",
                where=where,
                mend="remove it from `settings` or from `space`",
            )
        for value in parameter.corners():
            parse_settings(model, {**fixed, name: value}, where=f"{where}: space")
    return start


def starting_point(space: Mapping[str, Parameter], start: Settings) -> dict[str, Scalar] | None:
    """The learner's own values of what is searched; None when one lies outside the space."""
    point = {name: getattr(start, name) for name in space}
    for name, found in distributions(space).items():
        value = point[name]
        try:
            inside = found._contains(found.to_internal_repr(value))
        except (ValueError, TypeError):
            inside = False
        if not inside:
            return None
    return point


def _check_range(low: float, high: float, log: bool, stepped: bool) -> None:
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic scale needs low above 0, not {low}")
    if log and stepped:
        raise ValueError("log and step exclude each other")

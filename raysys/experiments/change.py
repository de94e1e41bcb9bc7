"""What may change in an experiment that runs, and the honest way to do what may not.

Moving users between arms mixes two treatments in one arm; changing a ratio of shares mid-flight
makes users of different days weigh differently in different arms (Simpson's paradox; Kohavi, Tang
and Xu, Trustworthy online controlled experiments, 2020, chapters 3 and 15).
"""

from __future__ import annotations

import datetime as dt
from fractions import Fraction

from raysys.errors import UserError
from raysys.experiments.definition import Experiment, ExperimentsSettings

_NEW = "end this experiment and begin a new one, with another name, whose users are drawn afresh"
_FIXED = ("salt", "surfaces", "eligibility", "window_days", "start", "interleave", "bandit")
_JUDGED = (
    "primary",
    "minimum_effect",
    "alpha",
    "power",
    "analysis",
    "covariate_days",
    "expected_users",
)


def check_change(
    old: ExperimentsSettings,
    new: ExperimentsSettings,
    *,
    where: str = "",
    now: dt.datetime | None = None,
) -> list[str]:
    """Refuse changes to experiments that have begun; returns what changed, in words.

    Args:
        old: as it is running.
        new: as it shall be.
        where: the file of the new, for errors.
        now: aware; None: this moment.

    Raises:
        UserError: naming every refused change and what to do instead.
    """
    moment = dt.datetime.now(dt.UTC) if now is None else now
    refused: list[tuple[str, str]] = []
    told = []
    for before in old.experiments:
        after = new.find(before.name)
        begun = before.start <= moment
        over = before.end is not None and before.end <= moment
        if after is None:
            told.append(f"{before.name}: removed")
            if begun and not over:
                refused.append((f"{before.name} runs and is removed", "set its end instead"))
            continue
        metrics = _redefined(before, old, new)
        changed = [*_changed(before, after), *(f"metric {name}" for name in metrics)]
        if not changed:
            continue
        told.append(f"{before.name}: {', '.join(changed)}")
        if begun:
            refused += [(f"{before.name}: {what}", mend) for what, mend in _refused(before, after)]
            if over and before.end != after.end:
                refused.append((f"{before.name} has ended and cannot be resumed", _NEW))
            refused += [
                (f"{before.name}: metric {name} is defined otherwise", "give it a new name")
                for name in metrics
            ]
    told += [f"{each.name}: new" for each in new.experiments if old.find(each.name) is None]
    if refused:
        what = "\n  ".join(dict.fromkeys(what for what, _ in refused))
        mend = "\n        ".join(dict.fromkeys(mend for _, mend in refused))
        raise UserError(what, where=where, mend=mend)
    return told


def _redefined(
    experiment: Experiment, old: ExperimentsSettings, new: ExperimentsSettings
) -> list[str]:
    """Metrics of an experiment that both files have, and define differently."""
    names = {metric.name for metric in new.metrics}
    return [
        metric.name
        for metric in old.metrics
        if metric.name in experiment.metrics
        and metric.name in names
        and new.metric(metric.name) != metric
    ]


def _refused(old: Experiment, new: Experiment) -> list[tuple[str, str]]:
    found = []
    if [arm.name for arm in old.arms] != [arm.name for arm in new.arms]:
        found.append(("arms are added, removed or moved while it runs", _NEW))
    else:
        found += _shares(old, new)
        for one, other in zip(old.arms, new.arms, strict=True):
            if one.model_dump(exclude={"share"}) != other.model_dump(exclude={"share"}):
                found.append((f"arm {one.name} gives its users something else", _NEW))
    if _layer(old) != _layer(new):
        found.append(("it moves to another layer", _NEW))
    elif old.layer and new.layer:
        within = new.layer.from_ <= old.layer.from_ and old.layer.to <= new.layer.to
        if not within:
            found.append(("its slice of the layer loses users", "only widen the slice, or " + _NEW))
    found += [
        (f"{name} changes", _NEW) for name in _FIXED if getattr(old, name) != getattr(new, name)
    ]
    found += [
        (
            f"{name} changes after the first data came in",
            "what decides is settled before: add a secondary metric, or " + _NEW,
        )
        for name in _JUDGED
        if getattr(old, name) != getattr(new, name)
    ]
    lost = set(old.guardrails) - set(new.guardrails)
    if lost:
        names = ", ".join(sorted(rail.metric for rail in lost))
        found.append(
            (f"guardrails are dropped or loosened: {names}", "keep them; more may be added")
        )
    if old.end != new.end and old.analysis == "fixed":
        found.append(
            (
                "end moves, and a fixed analysis judges once, at the end that was planned",
                "keep the end; `analysis: sequential` lets the next experiment end at any time",
            )
        )
    return found


def _shares(old: Experiment, new: Experiment) -> list[tuple[str, str]]:
    before = [Fraction(arm.share) / old.total for arm in old.arms]
    after = [Fraction(arm.share) / new.total for arm in new.arms]
    if before != after:
        told = ", ".join(
            f"{one.name} {one.share} → {other.share}"
            for one, other in zip(old.arms, new.arms, strict=True)
            if one.share != other.share
        )
        ramp = ", ".join(f"{arm.name} {_ramped(arm.share, old)}" for arm in old.arms)
        able = (
            f"raise all shares alike, up to {ramp}: that adds users from the unassigned part only"
        )
        mend = f"{able}; or {_NEW}" if old.total < 1 else _NEW
        return [(f"shares change their ratio, which moves users between arms: {told}", mend)]
    if new.total < old.total:
        return [("shares shrink, which takes users out", "set its end, or " + _NEW)]
    return []


def _ramped(share: object, experiment: Experiment) -> str:
    return f"{float(Fraction(str(share)) / experiment.total):.4g}"


def _layer(experiment: Experiment) -> str | None:
    return None if experiment.layer is None else experiment.layer.name


def _changed(old: Experiment, new: Experiment) -> list[str]:
    return [name for name in Experiment.model_fields if getattr(old, name) != getattr(new, name)]

"""The plain sentences that an analysis comes to."""

from __future__ import annotations

from math import isnan

from raysys.experiments.analysis import Comparison, ExperimentAnalysis
from raysys.experiments.statistics import Effect


def verdict(found: ExperimentAnalysis) -> list[str]:
    """What to do, a sentence an arm; one alone where the data cannot be trusted."""
    if not found.trusted:
        told = ", ".join(f"{arm} {count:,}" for arm, count in found.users.items())
        shares = " : ".join(str(arm.share) for arm in found.experiment.arms)
        return [
            f"Not to be trusted: arms hold {told} users where shares promise {shares} "
            f"(p = {found.srm_p:.2g}). Something loses or moves users: find it first, no figure "
            "below means anything."
        ]
    lead = ""
    if found.early and found.experiment.end is not None:
        end = found.experiment.end.date().isoformat()
        lead = f"Too early: this analysis judges once, on {end}; until then nothing is decided. "
    return [lead + _sentence(found, each) for each in found.of("primary")]


def _sentence(found: ExperimentAnalysis, primary: Comparison) -> str:
    arm, metric = primary.arm, primary.metric
    harmed = [c.metric for c in found.of("guardrail", arm) if c.state == "harmed"]
    unsure = [c.metric for c in found.of("guardrail", arm) if c.state == "open"]
    lift = _change(primary)
    if primary.state == "better":
        text = f"{arm} is better: {metric} changes by {lift}"
        if harmed:
            return (
                f"{text}, but {_and(harmed)} suffer{'s' * (len(harmed) == 1)}: weigh one "
                "against the other before it goes to everybody."
            )
        if unsure:
            return (
                f"{text}; whether {_and(unsure)} stay{'s' * (len(unsure) == 1)} within the "
                "tolerance is not settled yet: keep it running, or accept that."
            )
        held = "; its guardrails hold" if found.experiment.guardrails else ""
        return f"{text}{held}. Give it to everybody."
    if primary.state == "worse":
        return f"{arm} is worse: {metric} changes by {lift}. Stop it."
    if primary.absolute.error != primary.absolute.error:
        return f"{arm}: {metric} says nothing yet: no event has been counted."
    tail = ""
    if harmed:
        tail = f" {_and(harmed).capitalize()} suffer{'s' * (len(harmed) == 1)}: stop it."
    wanted = found.experiment.minimum_effect
    best = max(abs(primary.relative.low), abs(primary.relative.high))
    if isnan(best):
        return f"Open: with {arm} {metric} changes by {lift}.{tail or ' Keep it running.'}"
    if best < wanted:
        return (
            f"{arm} makes no difference that matters: {metric} changes by {lift}, which leaves "
            f"out the {wanted:.1%} that would be worth having.{tail}"
        )
    return (
        f"Open: with {arm} {metric} changes by {lift}; nothing at all and {wanted:.1%} or more are "
        f"both possible.{tail or ' Keep it running.'}"
    )


def _change(found: Comparison) -> str:
    """The lift; of nothing there is none, then the difference."""
    if not isnan(found.relative.value):
        return told(found.relative)
    plain = found.absolute
    return (
        f"{plain.value:+.3g} a user (between {plain.low:+.3g} and {plain.high:+.3g}; nothing in "
        "the control, so there is no lift in per cent)"
    )


def told(effect: Effect) -> str:
    """A lift with its interval."""
    return f"{effect.value:+.1%} (between {effect.low:+.1%} and {effect.high:+.1%})"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

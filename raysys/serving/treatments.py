"""What the arms of one request come to, and who is drawn into which."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

from raysys.experiments import Assignment, Experiment, ExperimentsSettings, assign
from raysys.experiments.allocation import Allocation, even
from raysys.experiments.drafting import BOTH
from raysys.experiments.parts import Arm, Attributes, Metric
from raysys.features.live import LiveFeatures
from raysys.serving.args import ServeArgs
from raysys.serving.experiments import Place, decides, places_of
from raysys.serving.problems import invalid

HEADER: Final = "X-Experiment-Arm"
_PROFILE: Final = {"orders": "n_orders", "recency_days": "recency_days"}


@dataclass(frozen=True)
class Treatment:
    """What the arms of one request come to.

    Attributes:
        who: the id that was drawn.
        assignments: one an experiment; none is empty.
        attributes: experiment → those by which its effects are told apart.
        at: UTC ms of the draw.
        surface: of the list.
        bundle: id of the one that answers; None: no arm says.
        decided: see `decides`, of all arms together.
        teams: where the list is drafted from two, what each of them comes to; None: it is not.
    """

    who: str
    assignments: tuple[Assignment, ...]
    attributes: dict[str, dict[str, str]]
    at: int
    surface: str
    bundle: str | None
    decided: dict[str, Any]
    teams: tuple[Treatment, Treatment] | None = None

    @property
    def arms(self) -> dict[str, str]:
        """Experiment → arm."""
        return {each.experiment: each.arm.name for each in self.assignments}


@dataclass(frozen=True)
class Served:
    """The experiments that a replica serves; never changes.

    Attributes:
        settings: all that were accepted.
        bundles: experiment → arm → id of its bundle, of arms that name one.
        args: the deployment's.
        ready: names of those whose bundles are loaded; nobody is drawn into the others.
        allocations: experiment → weights of its arms, of those with a bandit.
    """

    settings: ExperimentsSettings
    bundles: Mapping[str, Mapping[str, str]]
    args: ServeArgs
    ready: frozenset[str] = field(default=frozenset())
    allocations: Mapping[str, Allocation] = field(default_factory=dict)

    @cached_property
    def by_place(self) -> dict[Place, tuple[Experiment, ...]]:
        """Experiments that may draw, by the lists they run on."""
        found: dict[Place, tuple[Experiment, ...]] = {}
        for experiment in self.settings.experiments:
            if experiment.name in self.ready:
                for place in places_of(experiment):
                    found[place] = (*found.get(place, ()), experiment)
        return found

    @property
    def bandits(self) -> list[tuple[Experiment, Metric]]:
        """Experiments whose arms are weighed by what came of them, and by which metric."""
        return [
            (each, self.settings.metric(each.primary))
            for each in self.settings.experiments
            if each.name in self.ready and each.bandit is not None
        ]

    def settled(self, now: dt.datetime) -> bool:
        """Whether every bundle is pinned for good: of what has begun, and is all there."""
        return all(
            each.start <= now
            and all(
                a.bundle is None or a.name in self.bundles.get(each.name, {}) for a in each.arms
            )
            for each in self.settings.experiments
            if places_of(each) and (each.end is None or now < each.end)
        )

    def needs(self, now: dt.datetime) -> dict[str, frozenset[str]]:
        """Experiments of ours that run at a moment → ids of the bundles that they need."""
        return {
            each.name: frozenset(self.bundles.get(each.name, {}).values())
            for each in self.settings.experiments
            if each.runs_at(now) and places_of(each)
        }

    def treatment(
        self,
        place: Place,
        who: str | None,
        attributes: Callable[[frozenset[str]], Attributes],
        forced: Mapping[str, str],
        at: int,
    ) -> Treatment | None:
        """What a request is to get; None: it is in no experiment.

        Args:
            place: of the list.
            who: user, else session; None: nobody in particular, who is in none.
            attributes: gives those of some names, as far as anybody knows them.
            forced: experiment → arm, as a tester wants it.
            at: UTC ms.

        Raises:
            Problem: 422, a tester names what does not run on this list.
        """
        candidates = self.by_place.get(place, ())
        if not candidates and not forced:
            return None
        now = dt.datetime.fromtimestamp(at / 1000, dt.UTC)
        running = {each.name: each for each in candidates if each.runs_at(now)}
        chosen = {name: _forced(running, name, arm) for name, arm in forced.items()}
        if who is None:
            if forced:
                raise invalid(f"header.{HEADER}", "the request names neither user nor session", "")
            return None
        asked = {name for each in running.values() for name in _asked(each)}
        told = attributes(frozenset(asked)) if asked else {}
        drawn = assign(running.values(), who, told, now=now) | chosen
        drawn = _exclusive(drawn, running)
        if not drawn:
            return None
        drawn = {n: self._weighed(running[n], each, who, told) for n, each in drawn.items()}
        for name, each in drawn.items():
            if running[name].interleave and not each.forced:  # at most one on a list
                return self._drafted(name, place[0], who, drawn, running, told, at)
        return self._treatment(place[0], who, drawn, running, told, at)

    def _weighed(
        self, experiment: Experiment, drawn: Assignment, who: str, told: Attributes
    ) -> Assignment:
        """The arm by the bandit's weights, where one decides."""
        if experiment.bandit is None or drawn.forced:
            return drawn
        weights = self.allocations.get(experiment.name) or even(experiment)
        return weights.draw(experiment, who, told)

    def _drafted(
        self,
        name: str,
        surface: str,
        who: str,
        drawn: Mapping[str, Assignment],
        running: Mapping[str, Experiment],
        told: Attributes,
        at: int,
    ) -> Treatment:
        """What both arms of an interleaved experiment come to."""
        experiment = running[name]
        first, second = (
            self._treatment(
                surface, who, {**drawn, name: replace(drawn[name], arm=arm)}, running, told, at
            )
            for arm in experiment.arms
        )
        share = experiment.total
        both = Arm(name=BOTH, share=Decimal(share.numerator) / share.denominator)
        assignments = {**drawn, name: Assignment(name, both, float(share))}
        return replace(first, assignments=tuple(assignments.values()), teams=(first, second))

    def _treatment(
        self,
        surface: str,
        who: str,
        drawn: Mapping[str, Assignment],
        running: Mapping[str, Experiment],
        told: Attributes,
        at: int,
    ) -> Treatment:
        bundle: str | None = None
        decided: dict[str, Any] = {}
        noted: dict[str, dict[str, str]] = {}
        for name, each in drawn.items():
            bundle = self.bundles.get(name, {}).get(each.arm.name, bundle)
            mine = decides(each.arm, surface, self.args)
            policy = decided.get("policy", {}) | mine.pop("policy", {})
            decided |= mine | ({"policy": policy} if policy else {})
            wanted = dict.fromkeys(_asked(running[name]))
            noted[name] = {key: _text(told[key]) for key in wanted if key in told}
        return Treatment(who, tuple(drawn.values()), noted, at, surface, bundle, decided)


def attributes_of(
    features: LiveFeatures,
    now: int,
    place: Place,
    user_id: str | None,
    who: str | None,
    said: Mapping[str, str],
) -> Callable[[frozenset[str]], Attributes]:
    """Reads what eligibility and segments may ask for, and nothing that they do not.

    `surface`, `place`, `signed_in` (a user, not a session alone), `known` (an event of theirs is in
    the log), `orders`, `recency_days`, `favourite_COLUMN` as the profile has them, and what the
    caller said.
    """

    def read(names: frozenset[str]) -> Attributes:
        number = -1 if who is None else features.user_number(who)
        ours: dict[str, Any] = {
            "surface": place[0],
            "place": place[1],
            "signed_in": user_id is not None,
            "known": features.met(number),
        }
        found: dict[str, Any] = {}
        if ours["known"] and any(n.startswith("favourite_") or n in _PROFILE for n in names):
            facts = features.profile(number, now)
            found = {name: facts[column] for name, column in _PROFILE.items()}
            for column, favourites in facts["favourites"].items():
                if favourites:
                    found[f"favourite_{column}"] = favourites[0]["name"]
        merged = {**said, **found, **ours}
        return {name: merged[name] for name in names if merged.get(name) is not None}

    return read


def _asked(experiment: Experiment) -> tuple[str, ...]:
    """Attributes that an experiment wants to know of who asks."""
    context = () if experiment.bandit is None else experiment.bandit.context
    return (*experiment.segments, *experiment.eligibility, *context)


def _forced(running: Mapping[str, Experiment], name: str, arm: str) -> Assignment:
    experiment = running.get(name)
    where = f"header.{HEADER}"
    if experiment is None:
        told = ", ".join(running) or "none"
        raise invalid(where, f"no such experiment runs on this list; there is: {told}", name)
    if arm not in experiment.arm:
        raise invalid(where, f"{name} has the arms {', '.join(experiment.arm)}", arm)
    chosen = experiment.arm[arm]
    return Assignment(name, chosen, float(chosen.share), forced=True)


def _exclusive(
    drawn: dict[str, Assignment], running: Mapping[str, Experiment]
) -> dict[str, Assignment]:
    """Without what a tester's override excludes: others of the same layer."""
    layers = {
        layer.name
        for name, each in drawn.items()
        if each.forced and (layer := running[name].layer) is not None
    }
    return {
        name: each
        for name, each in drawn.items()
        if each.forced or (layer := running[name].layer) is None or layer.name not in layers
    }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

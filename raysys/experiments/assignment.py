"""Who gets which arm: a salted hash of a stable id, so nothing has to be stored or looked up.

The same id gets the same arm on every replica and on every day; draws of experiments with different
salts are independent (BLAKE2b with the salt as key is a pseudo-random function, RFC 7693). A user
is drawn twice: into the experiment, then into an arm. So an experiment can be ramped up without
moving anybody: what grows is the first draw.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raysys.experiments.definition import Experiment
from raysys.experiments.parts import Arm, Attributes

_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Assignment:
    """An arm that a user got.

    Attributes:
        experiment: its name.
        arm: what the user gets.
        propensity: with which an eligible user of the experiment's slice gets this arm.
        forced: a tester's override, which the analysis leaves out.
    """

    experiment: str
    arm: Arm
    propensity: float
    forced: bool = False


def assign(
    experiments: Iterable[Experiment],
    user_id: str,
    attributes: Attributes = _NOTHING,
    *,
    surface: str | None = None,
    now: dt.datetime | None = None,
) -> dict[str, Assignment]:
    """The arms of a user: experiment → assignment, for those that the user is in.

    Args:
        experiments: as `ExperimentsSettings.experiments`.
        user_id: any id that stays the same: a user's, or a cookie's of somebody unknown.
        attributes: that eligibility may ask for.
        surface: the one that asks; None: those of all surfaces.
        now: aware; None: this moment.

    Raises:
        ValueError: an empty id, which would be everybody's.
    """
    if not user_id:
        raise ValueError("an empty user_id cannot be assigned")
    moment = dt.datetime.now(dt.UTC) if now is None else now
    layers: dict[str, int] = {}
    found = {}
    for experiment in experiments:
        if surface is not None and experiment.surfaces and surface not in experiment.surfaces:
            continue
        if not experiment.runs_at(moment):
            continue
        forced = experiment.testers.get(user_id)
        if forced is not None:
            arm = experiment.arm[forced]
            found[experiment.name] = Assignment(experiment.name, arm, float(arm.share), True)
            continue
        if not _in_slice(experiment, user_id, layers) or not experiment.eligible(attributes):
            continue
        drawn = draw(experiment, user_id)
        if drawn is not None:
            found[experiment.name] = Assignment(experiment.name, drawn, float(drawn.share))
    return found


def draw(experiment: Experiment, user_id: str) -> Arm | None:
    """The arm that the hash says, None for those left out; asks for nothing else."""
    entry, choice = hashes(experiment.salt or experiment.name, user_id)
    total, ends = experiment.bounds
    if entry >= total:
        return None
    # the last bound is 2^64, beyond every hash
    return experiment.arms[bisect_right(ends, choice)]


def hashes(salt: str, user_id: str) -> tuple[int, int]:
    """Two independent uniform numbers below 2^64."""
    digest = hashlib.blake2b(
        user_id.encode("utf-8", "surrogatepass"), digest_size=16, key=salt.encode()
    ).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _in_slice(experiment: Experiment, user_id: str, layers: dict[str, int]) -> bool:
    """Whether the user's place in the layer is in the experiment's slice."""
    bounds = experiment.slice_bounds
    if bounds is None or experiment.layer is None:
        return True
    name = experiment.layer.name
    if name not in layers:
        # a key that no experiment's salt can be: names have no blank
        layers[name] = hashes(f" {name}", user_id)[0]
    return bounds[0] <= layers[name] < bounds[1]

"""What earlier searches found, to be tried first: from `best.yaml` or a journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysys.config import load_yaml
from raysys.errors import UserError
from raysys.tuning.settings import Goal, WarmStart
from raysys.tuning.space import NAMESPACES, Parameter, Scalar, inside, single
from raysys.tuning.study import COMPLETE, JOURNAL, SEARCH, has_study, open_study, ranked, trials_of

log = logging.getLogger("raysys")

BEST = "best.yaml"


def warm_points(
    warm: WarmStart,
    learner: str,
    space: Mapping[str, Parameter],
    start: Mapping[str, Scalar],
) -> list[dict[str, Scalar]]:
    """Values to try first, the best of each file, those of the first file first.

    Their scores are not taken over: they were reached on other data, or on a sample. What an
    earlier search did not search is the learner's own. Points outside the space are left out.

    Args:
        warm: which files.
        learner: whose settings; others' are refused.
        space: what is searched now.
        start: the learner's own values.

    Raises:
        UserError: no such file, or another learner's.
    """
    found: list[dict[str, Scalar]] = []
    for name in warm.files:
        for values in _read(Path(name), learner, warm.best):
            point = {**start, **{key: values[key] for key in values if key in space}}
            if not inside(space, point):
                log.warning("warm start: %s lies outside the space: %s", name, point)
            elif point not in found:
                found.append(point)
    return found


def _read(path: Path, learner: str, best: int) -> list[dict[str, Any]]:
    """Values by dotted name."""
    if path.is_dir():
        path = path / (JOURNAL if (path / JOURNAL).is_file() else BEST)
    if not path.is_file():
        raise UserError(
            f"no such file: {str(path)!r}",
            where="warm_start.files",
            mend="give a `best.yaml` or a `trials.log` that `raysys tune` wrote, or its folder",
        )
    if path.name.endswith((".yaml", ".yml")):
        content = load_yaml(path)
        if not isinstance(content.get(learner), dict):
            raise UserError(f"no settings of {learner}", where=str(path))
        found = _flat(content[learner])
        for part in NAMESPACES:  # what of the rows, and of their features, was searched
            found += _flat(content.get(part) or {}, f"{part}.")
        return [dict(found)]
    if not has_study(path.parent, SEARCH):
        raise UserError(f"no search in {path.name}", where=str(path))
    study = open_study(path.parent)
    trials = trials_of(study)
    if not any(trial.state == COMPLETE for trial in trials):
        return []
    goal = Goal(direction="min" if study.direction.name == "MINIMIZE" else "max")
    return [trial.values for trial in ranked(trials, goal)[:best]]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, single(value)))
    return found

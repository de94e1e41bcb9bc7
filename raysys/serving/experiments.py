"""What an experiment's arms mean to a deployment: bundles, policies, parameters of its lists.

An experiment names the surfaces it runs on by ours (`recommend`, `search`, `similar`, `rank`), or
by the place of a list of recommendations (`home`, `item`, `cart`). One that names none runs on all;
one that names only others, such as a shop's own pages, is not ours to serve.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from raysys.config import Settings, load_settings, parse_settings
from raysys.errors import UserError
from raysys.experiments import Experiment, ExperimentsSettings
from raysys.experiments.change import check_change
from raysys.experiments.definition import refuse_conflicts
from raysys.experiments.parts import Arm
from raysys.serving.args import ListArgs, ServeArgs
from raysys.serving.edge_args import under_home
from raysys.storage import write_atomic

FILE: Final = "serving/experiments.json"

Place = tuple[str, str]
"""A surface and the place of its list; of others than `recommend` the place is the surface."""

PLACES: Final[dict[str, tuple[str, ...]]] = {
    "recommend": ("home", "item", "cart"),
    "search": ("search",),
    "similar": ("similar",),
    "rank": ("rank",),
}


def load_experiments(patterns: Sequence[str]) -> ExperimentsSettings:
    """The experiments of all files together, as JSON can say them.

    Args:
        patterns: paths, or patterns of them; relative ones lie under RAYSYS_HOME.

    Raises:
        UserError: no such file, one that is wrong, or files that contradict each other.
    """
    paths: dict[str, None] = {}
    for pattern in patterns:
        place = under_home(pattern)
        found = _matching(place)
        if not found:
            raise UserError("no file of experiments", where=str(place))
        paths |= dict.fromkeys(map(str, found))
    metrics: dict[str, Any] = {}
    experiments: list[Any] = []
    for path in paths:
        content = load_settings(ExperimentsSettings, _file(path))
        for metric in content.metrics:
            if metrics.setdefault(metric.name, metric) != metric:
                raise UserError(
                    f"metric {metric.name} is defined otherwise in another file",
                    where=path,
                    mend="give it a name of its own",
                )
        experiments += content.experiments
    merged = {"metrics": list(metrics.values()), "experiments": experiments}
    where = ", ".join(paths)
    return as_json_says(parse_settings(ExperimentsSettings, merged, where=where), where)


def stamp_of(patterns: Sequence[str]) -> tuple[Any, ...]:
    """Changes whenever the files do."""
    found: list[Any] = []
    for pattern in patterns:
        for path in _matching(under_home(pattern)):
            try:
                state = path.stat()
                found.append((str(path), state.st_mtime_ns, state.st_size, state.st_ino))
            except OSError:
                found.append((str(path), None))
    return (tuple(patterns), *found)


def as_json_says(settings: ExperimentsSettings, where: str = "") -> ExperimentsSettings:
    """The same after a way through JSON, so that what was kept equals what was read."""
    content = json.loads(settings.model_dump_json(by_alias=True))
    return parse_settings(ExperimentsSettings, content, where=where)


def places_of(experiment: Experiment) -> frozenset[Place]:
    """Where an experiment runs, of what we serve; empty: it is not ours."""
    named = experiment.surfaces or tuple(PLACES)
    return frozenset(
        (surface, place)
        for surface, places in PLACES.items()
        for place in places
        if surface in named or place in named
    )


def check_served(settings: ExperimentsSettings, args: ServeArgs, where: str) -> None:
    """Refuse arms that say what nobody reads, and experiments that would decide the same list.

    Raises:
        UserError: naming experiment, arm and setting.
    """
    expanded = []
    for experiment in settings.experiments:
        places = places_of(experiment)
        if not places:
            continue
        surfaces = {surface for surface, _ in places}
        if experiment.interleave and "rank" in surfaces:
            raise UserError(
                "a list of given items is not drafted from two",
                where=f"{where}: {experiment.name}.surfaces",
                mend="name those where it runs, of recommend (home, item, cart), search, similar",
            )
        for arm in experiment.arms:
            at = f"{where}: {experiment.name}.arms.{arm.name}"
            _check_parameters(arm, surfaces, args, at)
            for surface in sorted(surfaces):
                decided = with_arm(args, surface, decides(arm, surface, args), at)
                if experiment.interleave:
                    _check_draftable(decided.of(surface), surface, at)
        # `home` and `recommend` are two names that may mean one list
        names = tuple(sorted(place for _, place in places))
        expanded.append(experiment.model_copy(update={"surfaces": names}))
    try:
        refuse_conflicts(expanded)
    except ValueError as error:
        raise UserError(str(error), where=where) from None


def decides(arm: Arm, surface: str, args: ServeArgs) -> dict[str, Any]:
    """What an arm sets of a surface's lists: `policy` and parameters that the surface has."""
    known = _parameters(surface, args)
    found = {name: value for name, value in arm.parameters.items() if name in known}
    return found | ({"policy": arm.policy} if arm.policy and surface != "rank" else {})


def with_arm(args: ServeArgs, surface: str, decided: Mapping[str, Any], where: str) -> ServeArgs:
    """The deployment's arguments with what arms decide put over them.

    Args:
        args: the deployment's.
        surface: of the list.
        decided: see `decides`; of the policy each setting is replaced as a whole.
        where: for errors.

    Raises:
        UserError: a setting that there is not, or a value that it cannot have.
    """
    if not decided:
        return args
    own = args.of(surface)
    content = own.model_dump(mode="json", exclude_unset=True)
    policy = content.get("policy", {}) | decided.get("policy", {})
    content |= {**decided, "policy": policy}
    changed: ListArgs = parse_settings(type(own), content, where=where)
    return args.model_copy(update={surface: changed})


class Accepted(Settings):
    """What replicas serve, whichever of them read it first.

    Attributes:
        settings: as they were accepted; null: nothing yet.
        bundles: experiment → arm → id of the bundle that its name meant when the experiment began:
            an arm stays what it is, whatever the name means since.
    """

    settings: ExperimentsSettings | None = None
    bundles: dict[str, dict[str, str]] = {}


class AcceptedFile:
    """`serving/experiments.json` in the registry: what runs, against which changes are held.

    Args:
        registry: its root.
    """

    def __init__(self, registry: Path) -> None:
        self.path = registry / FILE

    def read(self) -> Accepted:
        """What it says; nothing where it is missing.

        Raises:
            UserError: it is damaged.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("no mapping")
        except FileNotFoundError:
            return Accepted()
        except (OSError, ValueError) as error:
            raise UserError(
                f"what runs cannot be read: {error}",
                where=str(self.path),
                mend="restore the file; without it nobody knows what must not change",
            ) from None
        return parse_settings(Accepted, content, where=str(self.path))

    def check(self, new: ExperimentsSettings, now: dt.datetime, where: str) -> list[str]:
        """What would change, in words.

        Raises:
            UserError: what must not, and the honest way; see `check_change`.
        """
        return self._check(self.read(), new, now, where)

    def accept(
        self,
        new: ExperimentsSettings,
        now: dt.datetime,
        resolve: Callable[[str], str],
        where: str,
    ) -> Accepted:
        """Serve these from now on; of several replicas one writes it.

        Args:
            new: as `load_experiments` gives them.
            now: by the deployment's clock.
            resolve: gives a bundle's id for a pointer or an id.
            where: the files, for errors.

        Raises:
            UserError: see `check`.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            old = self.read()
            self._check(old, new, now, where)
            bundles = {each.name: _bundles(each, old, now, resolve) for each in new.experiments}
            fresh = Accepted(settings=new, bundles=bundles)
            if fresh != old:
                write_atomic(self.path, fresh.model_dump_json(indent=1, by_alias=True) + "\n")
            return fresh

    def _check(
        self, old: Accepted, new: ExperimentsSettings, now: dt.datetime, where: str
    ) -> list[str]:
        if old.settings is None:
            return [f"{each.name}: new" for each in new.experiments]
        try:
            return check_change(old.settings, new, where=where, now=now)
        except UserError as error:
            mend = f"{error.mend}\n        (what was never shown to anybody: remove {self.path})"
            raise UserError(error.what, where=error.where, mend=mend) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_name(".experiments.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _check_draftable(args: ListArgs, surface: str, where: str) -> None:
    """A drafted list has two policies, and places and counts of neither."""
    for name in ("pinned", "at_most"):
        if getattr(args.policy, name, None):
            raise UserError(
                f"a drafted list of {surface} does not keep `{name}` of its policy",
                where=where,
                mend=f"set `{name}` empty in the policies of both arms, or compare arms apart "
                "(no interleave)",
            )


def _parameters(surface: str, args: ServeArgs) -> list[str]:
    """What `parameters` of an arm may name of a surface's lists."""
    if surface == "rank":  # all of the caller's own are wanted back, in no other order
        return []
    return [name for name in type(args.of(surface)).model_fields if name != "policy"]


def _check_parameters(arm: Arm, surfaces: set[str], args: ServeArgs, where: str) -> None:
    known = sorted({name for surface in surfaces for name in _parameters(surface, args)})
    for name in arm.parameters:
        if name not in known:
            raise UserError(
                f"no parameter {name!r} of {', '.join(sorted(surfaces))}",
                where=where,
                mend=f"one of: {', '.join(known) or 'none'}; what your own pages do goes by the "
                "arm's name, which every answer tells",
            )
    if arm.policy and surfaces == {"rank"}:
        raise UserError("the surface rank has no policy", where=where)


def _matching(place: Path) -> list[Path]:
    """The files that a path or pattern means, in order."""
    if not any(sign in str(place) for sign in "*?["):
        return [place]
    root = Path(place.anchor)
    return sorted(path for path in root.glob(str(place.relative_to(root))) if path.is_file())


def _file(path: str) -> Path:
    found = Path(path)
    if not found.is_file():
        raise UserError("no such file of experiments", where=path)
    return found


def _bundles(
    experiment: Experiment, old: Accepted, now: dt.datetime, resolve: Callable[[str], str]
) -> dict[str, str]:
    """Arm → id of its bundle; of an experiment that has begun as it was, a missing one left out."""
    before = None if old.settings is None else old.settings.find(experiment.name)
    begun = before is not None and before.start <= now
    found = dict(old.bundles.get(experiment.name, {})) if begun else {}
    for arm in experiment.arms:
        if arm.bundle is not None and arm.name not in found:
            with contextlib.suppress(UserError):  # who serves it says what is missing
                found[arm.name] = resolve(arm.bundle)
    return found

"""The experiments of one replica: what runs, the bundles it needs, and who was exposed to what."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from raysys.errors import UserError
from raysys.experiments import Experiment
from raysys.registry import Registry
from raysys.segments import tidy
from raysys.serving.allocations import Allocations
from raysys.serving.api import RecommendRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.experiments import (
    AcceptedFile,
    check_served,
    decides,
    load_experiments,
    places_of,
    stamp_of,
)
from raysys.serving.exposures import Drafted, ExposureLog
from raysys.serving.intake import SURFACES, ListRequest, who_asks
from raysys.serving.lease import Lease
from raysys.serving.metrics import Metrics
from raysys.serving.problems import Problem, invalid
from raysys.serving.service import Service
from raysys.serving.treatments import HEADER, Served, Treatment, attributes_of

log = logging.getLogger("raysys")


class ExperimentArms:
    """Draws arms, keeps their bundles warm, and records exposures.

    Args:
        args: the deployment's.
        load: makes a warm service of a bundle's id, known by a name.
        metrics: gives what counts.
    """

    def __init__(
        self,
        args: ServeArgs,
        load: Callable[[str, str], Service],
        metrics: Callable[[], Metrics],
    ) -> None:
        self._args, self._load, self._metrics = args, load, metrics
        self._registry = Registry(args.registry_path)
        self._accepted = AcceptedFile(self._registry.root)
        self._leases: dict[str, Lease] = {}
        self._failed: set[str] = set()
        self._log: ExposureLog | None = None
        self._allocations = Allocations(self._registry.root, args.exposures_path)
        self.served: Served | None = None
        self.trouble: dict[str, str] = {}
        self._stamp: tuple[Any, ...] = ()
        self._forget()

    def _forget(self) -> None:
        """Remove exposures that are too old, though nobody writes any."""
        days, folder = self._args.experiments.keep_days, self._args.exposures_path
        if days is not None and folder.is_dir():
            try:
                tidy(folder, days)
            except OSError as error:
                log.warning("old exposures could not be removed: %s", error)

    def look(self, patterns: Sequence[str], champion: Lease) -> None:
        """Serve what the files say, as far as it may change; blocks while bundles are loaded.

        What is wrong is logged once, told by `trouble`, and changes nothing of what runs.

        Args:
            patterns: files of experiments; empty: none is served.
            champion: whoever answers all else.
        """
        if not patterns and self.served is None:
            self.trouble = {}
            return
        now = champion.service.ranker.now()
        stamp = stamp_of(patterns)
        known = self.served
        served: Served | None
        if stamp == self._stamp and known is not None and known.settled(_moment(now)):
            served = known
            trouble = {what: why for what, why in self.trouble.items() if what == "files"}
        else:
            served, trouble = self._read_or_keep(patterns, now)
            self._stamp = stamp
        self._serve(served, champion, now, trouble)
        for name, told in trouble.items():
            if self.trouble.get(name) != told:
                log.error("experiments, %s: %s", name, told)
        self.trouble = trouble

    def keep(self, lease: Lease) -> str | None:
        """Take over a service that answers no more as champion, if an experiment needs it.

        Returns the name that it goes by then; None: nobody needs it.
        """
        served, bundle = self.served, lease.service.bundle.id
        names = [] if served is None else [self._names(served, name) for name in served.ready]
        known = next((each[bundle] for each in names if bundle in each), None)
        if known is None or bundle in self._leases:
            return None
        self._leases[bundle] = lease
        return known

    def treatment(
        self, asked: ListRequest, context: Context, champion: Service
    ) -> Treatment | None:
        """What a request is to get; None: it is in no experiment.

        Raises:
            Problem: 422, a tester names what does not run on this list.
        """
        served = self.served
        if served is None:
            if context.forced:
                raise invalid(f"header.{HEADER}", "no experiment runs here", list(context.forced))
            return None
        surface = SURFACES[type(asked)]
        place = (surface, asked.place if isinstance(asked, RecommendRequest) else surface)
        who, at = who_asks(asked.user_id, asked.session_id), champion.ranker.now()
        features = champion.bundle.features
        read = attributes_of(features, at, place, asked.user_id, who, asked.attributes)
        return served.treatment(place, who, read, context.forced, at)

    def drawn(self, asked: ListRequest, context: Context, champion: Service) -> Treatment | None:
        """The same; a fault costs the experiment, not the answer.

        Raises:
            Problem: as `treatment`.
        """
        try:
            return self.treatment(asked, context, champion)
        except Problem:
            raise
        except Exception:
            log.exception("nobody could be drawn; the champion answers")
            return None

    def lease(self, bundle: str) -> Lease | None:
        """The service of a bundle other than the champion's, in use until it is given back."""
        found = self._leases.get(bundle)
        return found if found is not None and found.take() else None

    def services(self) -> Iterator[Service]:
        """Each that an experiment needs beside the champion, in use while it is looked at."""
        for lease in list(self._leases.values()):
            if lease.take():
                try:
                    yield lease.service
                finally:
                    lease.give_back()

    def exposed(
        self, treatment: Treatment, request_id: str, bundle: str, drafted: Drafted | None = None
    ) -> None:
        """A list was answered in these arms."""
        if self._log is not None:
            self._log.served(
                treatment.assignments,
                treatment.who,
                treatment.attributes,
                at=treatment.at,
                request_id=request_id,
                surface=treatment.surface,
                bundle=bundle,
                drafted=drafted,
            )

    def status(self) -> dict[str, Any]:
        """What is served here, for people."""
        served = self.served
        if served is None:
            return {"experiments": [], "trouble": self.trouble}
        return {
            "experiments": [
                {
                    "name": each.name,
                    "arms": {arm.name: float(arm.share) for arm in each.arms},
                    "bundles": dict(served.bundles.get(each.name, {})),
                    "start": each.start.isoformat(),
                    "end": None if each.end is None else each.end.isoformat(),
                    "served": each.name in served.ready,
                    **_weights(served, each),
                }
                for each in served.settings.experiments
                if places_of(each)
            ],
            "trouble": self.trouble,
        }

    def close(self) -> None:
        """End everything; what was recorded is written."""
        self.served = None
        for lease in self._leases.values():
            lease.retire()
        self._leases = {}
        if self._log is not None:
            self._log.close()
            self._log = None
        self._allocations.close()

    def _read_or_keep(
        self, patterns: Sequence[str], now: int
    ) -> tuple[Served | None, dict[str, str]]:
        """What is to be served, and what is wrong: then what was served goes on."""
        try:
            return (self._read(patterns, now) if patterns else None), {}
        except (UserError, OSError) as error:
            return self.served or self._kept(), {"files": str(error)}

    def _read(self, patterns: Sequence[str], now: int) -> Served:
        where = ", ".join(patterns)
        settings = load_experiments(patterns)
        check_served(settings, self._args, where)
        accepted = self._accepted.accept(settings, _moment(now), self._registry.resolve, where)
        return Served(settings, accepted.bundles, self._args)

    def _kept(self) -> Served | None:
        """What replicas served before this one started; None: nothing, or nobody knows."""
        try:
            accepted = self._accepted.read()
            if accepted.settings is not None:
                check_served(accepted.settings, self._args, str(self._accepted.path))
        except UserError:
            return None
        if accepted.settings is None:
            return None
        return Served(accepted.settings, accepted.bundles, self._args)

    def _serve(
        self, served: Served | None, champion: Lease, now: int, trouble: dict[str, str]
    ) -> None:
        """Load what is needed, draw into what is ready, and end what nobody needs any more."""
        needs = {} if served is None else served.needs(_moment(now))
        ready, wanted = set(), set[str]()
        for name, bundles in needs.items():
            assert served is not None
            others = bundles - {champion.service.bundle.id}
            why = self._lacking(served, name) or self._warm(served, name, others)
            why = why or self._unfit(served, name, champion)
            if why:
                trouble[name] = why
                continue
            experiment = served.settings.find(name)
            by_lists = experiment is not None and experiment.by_lists
            if by_lists and champion.service.events is None:
                trouble[name] = "no events are taken (args.events), so nothing comes of its lists"
            ready.add(name)
            wanted |= bundles
        if ready and self._log is None:
            try:
                folder = self._args.exposures_path
                self._log = ExposureLog(self._args.experiments, folder, self._metrics)
            except OSError as error:  # an experiment of which nothing is known is none
                trouble["exposures"] = f"they cannot be written: {error}"
                ready.clear()
        fresh = None if served is None else replace(served, ready=frozenset(ready))
        if fresh is not None:
            weighed = self._allocations.look(fresh.bandits, champion.service.events, now)
            fresh = replace(fresh, allocations=weighed)
        if fresh != self.served:
            self.served = fresh
        for bundle in [b for b in self._leases if b not in wanted]:
            self._leases.pop(bundle).retire()

    @staticmethod
    def _lacking(served: Served, name: str) -> str:
        """Why an experiment cannot be served: bundles that there are not; empty: all are there."""
        experiment, pinned = served.settings.find(name), served.bundles.get(name, {})
        arms = () if experiment is None else experiment.arms
        lacking = [a.bundle for a in arms if a.bundle is not None and a.name not in pinned]
        return f"no such bundle: {', '.join(lacking)}" if lacking else ""

    def _names(self, served: Served, name: str) -> dict[str, str]:
        """Bundle → name it goes by: the experiment's, or its arm's where that is the champion's."""
        experiment, pinned = served.settings.find(name), served.bundles.get(name, {})
        return {
            pinned[arm.name]: arm.name if arm.bundle == self._args.bundle else arm.bundle
            for arm in (() if experiment is None else experiment.arms)
            if arm.bundle is not None and arm.name in pinned
        }

    def _warm(self, served: Served, name: str, bundles: frozenset[str]) -> str:
        """Load what is not loaded yet; why that is not possible, empty: it is."""
        names = self._names(served, name)
        lacking = sorted(bundles - self._leases.keys())
        # those that failed before come first: others need not be loaded, to be let go again
        for bundle in sorted(lacking, key=lambda each: each not in self._failed):
            try:
                self._leases[bundle] = Lease(self._load(names[bundle], bundle))
            except Exception as error:  # whatever it is, all else is answered
                self._failed.add(bundle)
                if not isinstance(error, UserError):
                    log.exception("%s cannot be loaded", bundle)
                return f"{bundle} cannot be loaded: {error}"
            self._failed.discard(bundle)
            log.info("%s is loaded for the experiment %s", bundle, name)
        return ""

    def _unfit(self, served: Served, name: str, champion: Lease) -> str:
        """Why a bundle cannot do what an arm decides; empty: each can."""
        experiment, pinned = served.settings.find(name), served.bundles.get(name, {})
        if experiment is None:
            return ""
        for surface in sorted({surface for surface, _ in places_of(experiment)}):
            for arm in experiment.arms:
                service = self._leases.get(pinned.get(arm.name, ""), champion).service
                try:
                    service.variant(surface, decides(arm, surface, self._args))
                except UserError as error:
                    return f"the arm {arm.name}: {error}"
        return ""


def _weights(served: Served, experiment: Experiment) -> dict[str, Any]:
    """What a bandit gives its arms now."""
    found = served.allocations.get(experiment.name)
    if found is None:
        return {}
    names = [arm.name for arm in experiment.arms]
    return {
        "weights": dict(zip(names, found.otherwise, strict=True)),
        "lists": dict(zip(names, found.lists, strict=True)),
        "rewarded": dict(zip(names, found.rewards, strict=True)),
    }


def _moment(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at / 1000, dt.UTC)

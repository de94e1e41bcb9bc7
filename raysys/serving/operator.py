"""The system behind the console: registry, keys, traffic and deployments of one replica."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from raysys.errors import UserError
from raysys.registry import BundleManifest, Moved, Registry
from raysys.registry.gate import interval_of
from raysys.registry.listing import default_pointer, judge_known
from raysys.serving.arms import Arms
from raysys.serving.experiment_reports import ExperimentReports
from raysys.serving.keys import Key, KeyRing, who_is
from raysys.serving.traffic_board import TrafficBoard
from raysys.web import (
    BundleFacts,
    DeploymentFacts,
    ExperimentFacts,
    NameFacts,
    Refused,
    TrafficFacts,
    WatchFacts,
)

log = logging.getLogger("raysys")

LOGIN_S = 8 * 3600


class Operator:
    """`web.Operations` over a replica.

    A login is a token `<key id>.<until>.<HMAC>`, signed with what the file of keys holds of that
    key: every replica knows it, no store is needed, and it ends with the key.

    Args:
        arms: what is served and tried; its arguments say where registry and keys are.
        board: knows the traffic of all replicas.

    Raises:
        UserError: the file of keys is missing or damaged.
    """

    def __init__(self, arms: Arms, board: TrafficBoard) -> None:
        self._arms, self._board = arms, board
        self._registry = Registry(arms.args.registry_path)
        path = arms.args.auth.keys_path
        self._ring = None if path is None else KeyRing(path)
        self._reports = ExperimentReports(
            lambda: arms.experiments.served,
            arms.args.exposures_path,
            lambda: arms.champion.events,
            lambda: arms.champion.ranker.now(),
            arms.args.experiments.analyse_minutes * 60,
        )

    def enter(self, key: str) -> str | None:
        """A token for a key with the role admin; None if it has not, or is none."""
        if self._ring is None:
            return "open"
        found = self._ring.find(key)
        if found is None or not _may(found):
            return None
        until = int(time.time()) + LOGIN_S
        return f"{found.id}.{until}.{_signature(found, until)}"

    def admits(self, token: str | None) -> bool:
        """Whether a token lets in; without keys everybody whom the deployment answers is."""
        if self._ring is None:
            return True
        name, _, rest = (token or "").partition(".")
        until, _, signature = rest.partition(".")
        found = self._ring.named(name)
        if found is None or not until.isdigit() or not until.isascii() or len(until) > 12:
            return False
        told = signature.encode("utf-8", "surrogateescape")  # whatever the cookie holds
        genuine = hmac.compare_digest(_signature(found, int(until)).encode(), told)
        return genuine and time.time() < int(until) and _may(found)

    def bundles(self) -> list[BundleFacts]:
        """Every bundle, newest first; a damaged one without figures."""
        names: dict[str, list[str]] = {}
        for name, bundle_id in self._registry.pointers().items():
            names.setdefault(bundle_id, []).append(name)
        facts = [self._facts(bundle, names.get(bundle, [])) for bundle in self._registry.list()]
        return sorted(facts, key=lambda each: each.created, reverse=True)

    def promote(self, bundle: str, *, force: bool, token: str | None) -> NameFacts:
        """Point `champion`, or a text task's name, at a bundle; see `Operations`.

        Raises:
            Refused: 404, no such bundle; 409, its figures are worse, or the name means another
                one meanwhile than it was judged against.
        """
        try:
            manifest = self._registry.verify(bundle)
            name = default_pointer(self._registry, manifest)
            before = self._registry.pointers().get(name)
            judged = judge_known(self._registry, manifest, before)
            if not judged.passes and not force:
                raise Refused(409, f"{manifest.id} stays where it is: {judged.reason}")
            forced = "" if judged.passes else ", forced"
            cause = f"promoted in the console by {self._who(token)}{forced}: {judged.reason}"
            self._registry.point(name, manifest.id, cause=cause, expected=before or "")
        except Moved as error:
            raise Refused(409, error.what) from None
        except UserError as error:
            raise Refused(404, error.what) from None
        return self._named(name)

    def earlier_champion(self) -> str | None:
        """See `Operations`."""
        return self._registry.earlier("champion")

    def roll_back(self, *, token: str | None) -> NameFacts:
        """Point `champion` at the bundle before; see `Operations`.

        Raises:
            Refused: 404, there is none.
        """
        try:
            cause = f"rolled back in the console by {self._who(token)}"
            self._registry.rollback("champion", cause=cause)
        except UserError as error:
            raise Refused(404, error.what) from None
        return self._named("champion")

    def _who(self, token: str | None) -> str:
        """Whose token it is, which has let in whoever asks."""
        if self._ring is None:
            return who_is(None)
        name = (token or "").partition(".")[0]
        found = self._ring.named(name)
        return f"key {name}" if found is None else who_is(found)  # it may be gone by now

    def _named(self, name: str) -> NameFacts:
        """A name means another bundle; who follows it may know at once."""
        self._arms.wake()
        args = self._arms.args
        return NameFacts(name, live=args.follow and name == args.bundle)

    def traffic(self) -> TrafficFacts:
        """Of all replicas, busiest call first, and what they counted since they started."""
        replicas, calls, counts = self._board.look()
        return TrafficFacts(replicas, calls, counts)

    def experiments(self) -> list[ExperimentFacts]:
        """Those that are served, planned or ended lately."""
        return self._reports.facts()

    def experiments_trouble(self) -> dict[str, str]:
        """What keeps experiments, or a change of them, from being served → why."""
        return self._arms.experiments.trouble

    def experiment_report(self, name: str) -> str | None:
        """The whole report of an experiment as a page; None: there is none."""
        return self._reports.report(name)

    def watched(self) -> WatchFacts:
        """Drift, and what came of the lists, as they were last looked at."""
        champion = self._arms.champion
        if champion.args.monitor is None:
            why = "Nothing is watched: give `monitor` in the args of the serve config."
            return WatchFacts(no_drift=why, no_feedback=why)
        drift, told = champion.drift, champion.feedback
        no_drift = "No answer has been counted yet."
        if drift is None:
            no_drift = "Drift is not watched: this bundle does not say how its training data were "
            no_drift += "distributed (train again), or `monitor.share` is 0."
        no_feedback = "Nothing has been computed yet."
        if told is None:
            no_feedback = "Not known: give `shown_lists` in the args of the serve config, and "
            no_feedback += "`monitor.feedback_s` above 0."
        return WatchFacts(
            drift=None if drift is None else drift.figures,
            no_drift=no_drift,
            looked_at=0 if drift is None else drift.looked_at,
            feedback=None if told is None else told.latest,
            no_feedback=no_feedback,
        )

    def deployments(self) -> list[DeploymentFacts]:
        """Those of the application; empty where it runs without Ray Serve."""
        import ray

        if not ray.is_initialized():
            return []
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            name = serve.get_replica_context().app_name
        except RayServeException:  # Ray is there, but this is no replica of Serve's
            return []
        try:
            application = serve.status().applications.get(name)
        except Exception:  # the console goes on when the controller does not answer
            log.exception("Serve did not say how its deployments are")
            return []
        return [
            DeploymentFacts(name, str(told.status.value), _counted(told.replica_states))
            for name, told in (application.deployments if application else {}).items()
        ]

    def _facts(self, bundle: str, names: list[str]) -> BundleFacts:
        try:
            manifest = BundleManifest.read(self._registry.bundles / bundle)
        except UserError as error:
            return BundleFacts(bundle, "", f"damaged: {error.what}", {}, tuple(names))
        quality, weights = manifest.figures.get("ndcg10"), manifest.figures.get("weights")
        return BundleFacts(
            id=bundle,
            created=manifest.created,
            surface=manifest.surface,
            learners=dict(manifest.learners),
            pointers=tuple(names),
            quality=_numbers(quality),
            weights=_numbers(weights.get("full") if isinstance(weights, Mapping) else None),
            megabytes=sum(file["size"] for file in manifest.files.values()) / 1e6,
            settings=manifest.settings,
            versions=manifest.versions,
        )


def _numbers(figures: Any) -> dict[str, float]:
    """Figures of a manifest by name, each as one number; what is none is left out."""
    if not isinstance(figures, Mapping):
        return {}
    read = {str(name): interval_of(figure) for name, figure in figures.items()}
    return {name: figure.value for name, figure in read.items() if figure is not None}


def _may(key: Key) -> bool:
    return "admin" in key.roles and key.state(datetime.now(UTC)) == "valid"


def _signature(key: Key, until: int) -> str:
    words = f"console {key.id} {until}".encode()
    return hmac.new(bytes.fromhex(key.sha256), words, hashlib.sha256).hexdigest()


def _counted(states: Any) -> dict[str, int]:
    """Replica states with how many are in each."""
    return dict(Counter({str(getattr(k, "value", k)): n for k, n in states.items() if n}))

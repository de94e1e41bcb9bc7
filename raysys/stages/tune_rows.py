"""Settings of the data that a search can move: rows left out at reading, and runs of `features`."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysys.config import parse_settings
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.ingest.spread import InProcess
from raysys.stages.features import run as run_features
from raysys.stages.features_settings import FeaturesSettings
from raysys.storage import Workspace, digest, read_manifest
from raysys.tuning.objective import Rows
from raysys.tuning.sample import sample_requests
from raysys.tuning.settings import Proxy
from raysys.tuning.space import Parameter, Scalar, merged, of_namespace, starting_point


@dataclass(frozen=True)
class FeatureRuns:
    """Rows by settings of the features stage, which runs once for each that is asked for.

    Attributes:
        rows: of the workspace, for trials that move none of them.
        workspace: whose log is read.
        folder: of the runs, one workspace each, seen by all workers; kept with the search.
        settings: of the features stage, as the workspace's manifest holds them.
        proxy: how many requests are sampled.
    """

    rows: Rows
    workspace: Workspace
    folder: Path
    settings: Mapping[str, Any]
    proxy: Proxy

    def of(self, values: Mapping[str, Any]) -> tuple[Examples, Batch]:
        """See `RowsOf`; whoever asks first builds, in its own process, and others wait."""
        content = merged(self.settings, of_namespace(values, "features"))
        if digest(content) == digest(dict(self.settings)):
            return self.rows.of(values)
        place = Workspace(self.folder / digest(content))
        place.root.mkdir(parents=True, exist_ok=True)
        with (place.root / "lock").open("w") as lock:  # freed when its holder dies
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._link(place)
            settings = parse_settings(FeaturesSettings, content, where="features of a trial")
            run_features(settings, place, spread=InProcess())
            folds = read_manifest(place.features).figures["folds"]
            examples = Examples(place.features, tuple(folds["train"]))
            judged = examples.with_folds(folds["validation"])
            if self.proxy.requests:
                examples = sample_requests(examples, self.proxy.requests, place.root / "fitted")
            if self.proxy.validation_requests:
                few = self.proxy.validation_requests
                judged = sample_requests(judged, few, place.root / "judged")
        return Rows(examples, judged.batch()).of(values)

    def _link(self, place: Workspace) -> None:
        """Let a workspace see what of ours its features may read: the log, and plan's files."""
        own = {self.workspace.features, self.workspace.tune, self.workspace.train}
        for there in self.workspace.root.iterdir():
            here = place.root / there.name
            if there not in own and not there.name.startswith(".") and not here.exists():
                here.symlink_to(there)


def check_features(
    space: Mapping[str, Parameter], settings: Mapping[str, Any], *, where: str
) -> None:
    """Hold what is searched of the features stage against its settings.

    Raises:
        UserError: a setting that it lacks, or a bound that it refuses.
    """
    for name, parameter in space.items():
        for value in parameter.corners():
            parse_settings(FeaturesSettings, merged(settings, {name: value}), where=where)


def features_start(
    space: Mapping[str, Parameter], settings: Mapping[str, Any]
) -> dict[str, Scalar]:
    """The values that the workspace's features were made with."""
    start = parse_settings(FeaturesSettings, dict(settings), where="features")
    return starting_point(space, start, anywhere=True) or {}

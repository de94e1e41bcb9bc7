"""A workspace whose features are there: examples of the small shop, and a state to serve from."""

from __future__ import annotations

from pathlib import Path

from raysys.catalogue import Catalogue
from raysys.features.live import LiveFeatures
from raysys.storage import Manifest, Workspace
from tests.features.shop import PLAN
from tests.synthetic import write_examples


def write_features(root: Path, n_requests: int = 240, seed: int = 0) -> Workspace:
    """Four folds: two to train on, validation, report; as `raysys features` leaves them."""
    workspace = Workspace(root)
    examples, catalogue = write_examples(workspace.features, n_requests=n_requests, seed=seed)
    write_state(workspace, catalogue)
    manifest = Manifest(
        stage="features",
        inputs={"ingest": f"synthetic-{seed}"},
        figures={
            "folds": {"train": [0, 1], "validation": 2, "report": 3},
            "names": list(examples.names),
        },
    )
    manifest.write(workspace.features)
    return workspace


def write_state(workspace: Workspace, catalogue: Catalogue) -> None:
    """The feature state at the end of the log; here nothing has happened yet."""
    (workspace.features / "state").mkdir()
    LiveFeatures(PLAN, catalogue, ["u0", "u1"]).save(workspace.features / "state")

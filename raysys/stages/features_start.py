"""How a run of `raysys features` begins: what it is known by, and how its work is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from raysys.features.position_log import CURVE
from raysys.features.resources import files_of
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.text_vectors import models_of
from raysys.storage import Manifest, Workspace, file_digest, read_manifest, write_atomic

PART_EVENTS: Final = 2_000_000


def planned_features(settings: FeaturesSettings, workspace: Workspace) -> Manifest:
    """What a run with these settings would be known by, over what lies in the workspace.

    Raises:
        UserError: no ingested log, or no such model.
    """
    inputs = {"ingest": read_manifest(workspace.ingest).outcome}
    for name, file in files_of(settings.plan).items():
        path = workspace.root / file
        ours = name == "examination" and file == CURVE and settings.position_bias is not None
        if path.is_file() and not ours:  # our own curve follows from the rest
            inputs[name] = file_digest(path)[:16]
    for name, digest in models_of(settings.plan).items():
        inputs[f"vectors.{name}"] = digest[:16]
    return Manifest(
        stage="features",
        inputs=inputs,
        settings=settings.model_dump(mode="json", by_alias=True),
    )


def parts_of(root: Path, events: int, cpus: int) -> int:
    """Into how many the users are dealt; a run that goes on with other CPUs deals as before."""
    told = root / "parts.json"
    if not told.exists():
        rounds = max(2, -(-events // (PART_EVENTS * cpus)))  # that no core waits for a lonely one
        write_atomic(told, json.dumps(rounds * cpus))
    parts: int = json.loads(told.read_text(encoding="utf-8"))
    return parts

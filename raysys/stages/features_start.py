"""How a run of `raysys features` begins: what it is known by, and the folder of its pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from raysys.features.position_log import CURVE
from raysys.features.resources import files_of
from raysys.stages.features_settings import FeaturesSettings
from raysys.storage import Manifest, Workspace, file_digest, read_manifest, write_atomic

PART_EVENTS: Final = 2_000_000


def planned_features(settings: FeaturesSettings, workspace: Workspace) -> Manifest:
    """What a run with these settings would be known by, over what lies in the workspace.

    Raises:
        UserError: no ingested log.
    """
    inputs = {"ingest": read_manifest(workspace.ingest).fingerprint}
    for name, file in files_of(settings.plan).items():
        path = workspace.root / file
        ours = name == "examination" and file == CURVE and settings.position_bias is not None
        if path.is_file() and not ours:  # our own curve follows from the rest
            inputs[name] = file_digest(path)[:16]
    return Manifest(
        stage="features",
        inputs=inputs,
        settings=settings.model_dump(mode="json", by_alias=True),
    )


def working_folder(workspace: Workspace, planned: Manifest, force: bool) -> Path:
    """Where this plan's pieces lie; those of other plans are removed."""
    home = workspace.features.with_name(f".{workspace.features.name}.work")
    root = home / planned.fingerprint
    if home.exists():
        for leftover in home.iterdir():
            if leftover != root or force:
                shutil.rmtree(leftover, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    return root


def parts_of(root: Path, events: int, cpus: int) -> int:
    """Into how many the users are dealt; a run that goes on with other CPUs deals as before."""
    told = root / "parts.json"
    if not told.exists():
        rounds = max(2, -(-events // (PART_EVENTS * cpus)))  # that no core waits for a lonely one
        write_atomic(told, json.dumps(rounds * cpus))
    parts: int = json.loads(told.read_text(encoding="utf-8"))
    return parts

"""What `raysys tune` found, for the stages that fit: which file, and what goes over a YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysys.config import load_yaml
from raysys.errors import UserError
from raysys.storage import MANIFEST, Workspace, read_manifest
from raysys.tuning.space import overlaid
from raysys.tuning.warm import BEST


def tuned_file(
    name: str,
    tuned: Mapping[str, str],
    workspace: Workspace,
    *,
    look: bool,
    text: str | None = None,
) -> Path | None:
    """The file of what a search found for a learner; None: the YAML's own settings hold.

    Args:
        name: of the learner.
        tuned: name -> file, as the YAML says it.
        workspace: whose `tune/NAME` is taken where the YAML says nothing.
        look: whether it is.
        text: the text task that the search must have been of; null: requests.

    Raises:
        UserError: a file is named, but not there.
    """
    if name in tuned:
        found = Path(tuned[name])
        if not found.is_file():
            raise UserError(
                f"no such file: {tuned[name]!r}",
                where=f"tuned.{name}",
                mend=f"run `raysys tune --config tune_configs/{name}.yaml` first, or leave it out",
            )
        return found
    found = workspace.tune / name / BEST
    if not look or not found.is_file():
        return None
    return found if _searched(found.parent) == text else None


def tuned_settings(name: str, own: Mapping[str, Any], found: Path | None) -> dict[str, Any]:
    """A learner's settings with what a search found over them.

    Raises:
        UserError: the file is damaged, or another learner's.
    """
    if found is None:
        return dict(own)
    content = load_yaml(found)
    if not isinstance(content.get(name), dict):
        raise UserError(
            f"no settings of {name}",
            where=str(found),
            mend=f"it should hold `{name}:` and its settings, as `raysys tune` writes them",
        )
    return overlaid(own, content[name])


def _searched(folder: Path) -> str | None:
    """The text task that a search was of; None: of requests, or nobody says."""
    if not (folder / MANIFEST).is_file():
        return None
    told: str | None = read_manifest(folder).settings.get("text")
    return told

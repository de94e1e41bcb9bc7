"""Learners of the next item by name. One is imported when it is asked for."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.learners.sequence_protocol import SequenceLearner, SequenceModel

SEQUENCE_LEARNERS = {
    "recent_popularity": "raysys.learners.sequence_popularity:RecentPopularity",
    "item_knn": "raysys.learners.item_knn:ItemKNN",
    "session_knn": "raysys.learners.session_knn:SessionKNN",
    "sequence_transformer": "raysys.learners.sequence_transformer:SequenceTransformer",
}
FILE = "learner.json"


def sequence_learner_class(name: str) -> type[SequenceLearner[Any]]:
    """The class of a learner of the next item.

    Raises:
        UserError: there is no such learner; names those that there are.
    """
    if name not in SEQUENCE_LEARNERS:
        known = ", ".join(SEQUENCE_LEARNERS)
        raise UserError(f"no learner of sequences {name!r}", mend=f"choose among {known}")
    module, _, attribute = SEQUENCE_LEARNERS[name].partition(":")
    found: type[SequenceLearner[Any]] = getattr(import_module(module), attribute)
    return found


def make_sequence_learner(
    name: str, settings: dict[str, Any], *, where: str = ""
) -> SequenceLearner[Any]:
    """A learner of the next item with typed settings from a YAML mapping.

    Raises:
        UserError: unknown learner or bad settings.
    """
    found = sequence_learner_class(name)
    return found(parse_settings(found.settings_model, settings, where=where or name))


def save_sequence_model(name: str, model: SequenceModel, folder: Path) -> None:
    """Write a model and the name of its learner into a new or empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"learner": name}) + "\n", encoding="utf-8")
    model.save(folder)


def load_sequence_model(folder: Path) -> SequenceModel:
    """What `save_sequence_model` wrote.

    Raises:
        UserError: it is no such folder.
    """
    try:
        name = json.loads((folder / FILE).read_text(encoding="utf-8"))["learner"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no model of sequences: {FILE} cannot be read ({type(error).__name__})",
            where=str(folder),
            mend="give a folder that save_sequence_model wrote",
        ) from None
    return sequence_learner_class(name).model_class.load(folder)

"""Learners of the next item by name. One is imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysys.config import parse_settings
from raysys.learners.lookup import find_class, read_name, write_name
from raysys.learners.sequence_protocol import SequenceLearner, SequenceModel

SEQUENCE_LEARNERS = {
    "recent_popularity": "raysys.learners.sequence_popularity:RecentPopularity",
    "item_knn": "raysys.learners.item_knn:ItemKNN",
    "session_knn": "raysys.learners.session_knn:SessionKNN",
    "sequence_transformer": "raysys.learners.sequence_transformer:SequenceTransformer",
}


def sequence_learner_class(name: str) -> type[SequenceLearner[Any]]:
    """The class of a learner of the next item.

    Raises:
        UserError: there is no such learner; names those that there are.
    """
    found: type[SequenceLearner[Any]] = find_class(SEQUENCE_LEARNERS, name, "learner of sequences")
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
    write_name(folder, name)
    model.save(folder)


def load_sequence_model(folder: Path) -> SequenceModel:
    """What `save_sequence_model` wrote.

    Raises:
        UserError: it is no such folder.
    """
    mend = "give a folder that save_sequence_model wrote"
    name = read_name(folder, "model of sequences", mend)
    return sequence_learner_class(name).model_class.load(folder)

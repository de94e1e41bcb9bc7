"""Text learners by name, and their models by folder. A learner is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.learners.lookup import find_class, read_name, write_name
from raysys.learners.text_protocol import Task, TextLearner, TextModel

TEXT_LEARNERS = {
    "tfidf_classifier": "raysys.learners.tfidf_classifier:TfidfClassifier",
    "text_classifier": "raysys.learners.text_classifier:TextClassifier",
    "text_blend": "raysys.learners.text_blend:TextBlend",
    "pseudo_labels": "raysys.learners.pseudo_labels:PseudoLabels",
    "gazetteer_tagger": "raysys.learners.gazetteer_tagger:GazetteerTagger",
    "word_tagger": "raysys.learners.entity_tagger:WordTagger",
    "entity_tagger": "raysys.learners.entity_tagger:EntityTagger",
    "relevance_trees": "raysys.learners.relevance_trees:RelevanceTreesLearner",
    "bi_encoder": "raysys.learners.bi_encoder:BiEncoderLearner",
    "cross_encoder": "raysys.learners.cross_encoder:CrossEncoderLearner",
    "relevance_blend": "raysys.learners.relevance_blend:RelevanceBlendLearner",
}


def text_learner_class(name: str) -> type[TextLearner[Any]]:
    """The class of a text learner.

    Raises:
        UserError: there is no such learner; names those that there are.
    """
    found: type[TextLearner[Any]] = find_class(TEXT_LEARNERS, name, "text learner")
    return found


def make_text_learner(
    name: str, settings: dict[str, Any], *, task: Task | None = None, where: str = ""
) -> TextLearner[Any]:
    """A text learner with typed settings from a YAML mapping.

    Args:
        name: see `TEXT_LEARNERS`.
        settings: as found under `learners.NAME`.
        task: what it is to learn, where its settings do not say; one that knows several reads it
            as its setting `task`.
        where: what error messages name.

    Raises:
        UserError: unknown learner, bad settings, or a task that it cannot learn.
    """
    found = text_learner_class(name)
    if task is not None:
        if task not in found.tasks:
            able = [each for each in TEXT_LEARNERS if task in text_learner_class(each).tasks]
            raise UserError(
                f"{name} cannot learn {task}",
                where=where or name,
                mend=f"it learns {' and '.join(found.tasks)}; {task} is learned by "
                f"{', '.join(able) or 'none'}",
            )
        settings = settings_for(name, settings, task)
    return found(parse_settings(found.settings_model, settings, where=where or name))


def settings_for(name: str, settings: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Settings of a text learner, told its task where it can learn several."""
    several = "task" in text_learner_class(name).settings_model.model_fields
    return {"task": task, **settings} if several else dict(settings)


def save_text_model(name: str, model: TextModel, folder: Path) -> None:
    """Write a model and the name of its learner into a new or empty folder."""
    write_name(folder, name, task=model.task)
    model.save(folder)


def load_text_model(folder: Path) -> TextModel:
    """What `save_text_model` wrote.

    Raises:
        UserError: it is no such folder.
    """
    name = read_name(folder, "text model", "give a folder that training of texts wrote")
    return text_learner_class(name).model_class.load(folder)

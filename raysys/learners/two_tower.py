"""Two towers: a transformer fine-tuned on the texts a user bought × the text of an item.

Item vectors are computed when training ends; scoring is a matrix product, and neither a request
nor the report waits for a transformer. A head joins the vectors with the features (`head.py`).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from raysys.features.examples import Examples
from raysys.learners.protocol import Context, Learner, Model, Report
from raysys.learners.training import run_configs, threads_of, trained
from raysys.learners.two_tower_model import TwoTowerModel
from raysys.learners.two_tower_settings import TwoTowerSettings
from raysys.learners.validation import require_positives
from raysys.text.items import item_texts

log = logging.getLogger("raysys")

MOST_PARTS = 64
"""Of a step: several workers do not begin again in more."""


class TwoTower(Learner[TwoTowerSettings]):
    """A fine-tuned transformer on both sides."""

    name = "two_tower"
    family: ClassVar[str] = "transformer"
    settings_model = TwoTowerSettings
    model_class: ClassVar[type[Model]] = TwoTowerModel
    steps = "steps"

    def reads(self, names: Sequence[str]) -> tuple[str, ...]:
        """See `Learner.reads`: what the head does."""
        return () if self.settings.head is None else self.settings.head.chosen(names)

    def fit(self, examples: Examples, context: Context) -> Model:
        """See `Learner.fit`; one Ray Train run."""
        return self.fit_folds([examples], context)[0]

    def fit_local(
        self, examples: Examples, context: Context, report: Report | None = None
    ) -> Model:
        """See `Learner.fit_local`; with `report` the tail is left out and judged as it goes."""
        import torch

        from raysys.learners.two_tower_workshop import Workshop

        require_positives(examples)
        gpu = context.resources.gpus_per_worker > 0
        device = torch.device("cuda" if gpu else "cpu")
        workshop = Workshop(self.settings, context.catalogue, device)
        before = torch.get_num_threads()
        torch.set_num_threads(threads_of(context))
        try:
            if report is None:
                return workshop.fit(examples, context.seed, checkpoint=context.checkpoint)
            head, tail = examples.head_and_tail(self.settings.last_fraction)
            return workshop.fit(
                *(head, context.seed),
                watch=tail.batch(),
                report=report,
                checkpoint=context.checkpoint,
            )
        finally:
            torch.set_num_threads(before)

    def fit_folds(self, folds: Sequence[Examples], context: Context) -> list[Model]:
        """See `Learner.fit_folds`: one Ray Train run, in which the frozen layers run once.

        A worker that is alone and dies goes on from the context's checkpoint; where memory runs
        out in one of several, all begin again, with steps in more parts.
        """
        from raysys.text.training.parts import MorePartsNeeded

        item_texts(context.catalogue, self.settings.text)
        for examples in folds:
            require_positives(examples)
        place = context.scratch / f"{self.name}-{uuid.uuid4().hex[:8]}-catalogue.parquet"
        context.scratch.mkdir(parents=True, exist_ok=True)
        context.catalogue.save(place)
        parts = 1
        try:
            while True:
                try:
                    return self._fit_folds(folds, context, place, parts)
                except MorePartsNeeded as error:
                    if parts >= MOST_PARTS:  # other memory than that of a step
                        raise
                    parts *= 4  # all begins again: few tries
                    log.warning(
                        "%s: %s: starting again, with steps in %d parts",
                        *(error.where, error.what, parts),
                    )
        finally:
            place.unlink()

    def _fit_folds(
        self, folds: Sequence[Examples], context: Context, catalogue: Path, parts: int
    ) -> list[Model]:
        """One Ray Train run, whose steps begin in so many parts."""
        from ray.train.torch import TorchTrainer

        from raysys.learners.two_tower_workshop import train_loop

        alone = context.resources.workers == 1
        checkpoint = context.checkpoint if alone else None
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={
                "settings": self.settings,
                "folds": list(folds),
                "catalogue": catalogue,
                "parts": parts,
                "seed": context.seed,
                "threads": threads_of(context),
                "checkpoint": checkpoint,
            },
            **run_configs(self.name, context, resumes=checkpoint is not None),
        )
        models: list[Model] = []
        with trained(trainer, checkpoint.root if checkpoint else None) as folder:
            for number in range(len(folds)):
                model = TwoTowerModel.load(folder / f"fold={number}", context.catalogue)
                _ = model.encoder  # open it while its folder is there
                models.append(model)
        return models

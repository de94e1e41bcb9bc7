"""Where two towers are fitted: fine-tuning, then the head, over what several folds share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.head import Head, fit_head, standard
from raysys.learners.protocol import Report
from raysys.learners.sampling import thinned, with_some_positive
from raysys.learners.training import stopping
from raysys.learners.two_tower import TwoTower
from raysys.learners.two_tower_model import TwoTowerModel, mean_of_history
from raysys.learners.two_tower_settings import TwoTowerSettings
from raysys.learners.validation import NDCG, no_positives
from raysys.storage import CheckpointFolder
from raysys.text.histories import history_codes
from raysys.text.items import item_texts

if TYPE_CHECKING:
    from torch import nn

    from raysys.text.encoder import Encoder, States


class Workshop:
    """What fits of several folds share: texts, and what the frozen layers say of them.

    Args:
        settings: of the learner.
        catalogue: every item.
        device: to run on.
        parts: of every training step, to begin with; see `Parts`.
    """

    def __init__(
        self, settings: TwoTowerSettings, catalogue: Catalogue, device: Any, parts: int = 1
    ) -> None:
        self.settings = settings
        self.parts = parts
        self.texts = item_texts(catalogue, settings.text)
        self.device = device

    def _open(self) -> Encoder:
        from raysys.text.encoder import Encoder

        settings = self.settings
        return Encoder.open(settings.model, settings.max_tokens, settings.trainable_layers)

    @cached_property
    def states(self) -> States:
        """Of every distinct text."""
        return self._open().states(self.texts.distinct, self.device)

    def fit(
        self,
        examples: Examples,
        seed: int,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        watch: Batch | None = None,
        report: Report | None = None,
        checkpoint: CheckpointFolder | None = None,
    ) -> TwoTowerModel:
        """Fine-tune on the examples, then place every item; from the pre-trained model each time.

        Args:
            examples: this worker's.
            seed: of the sampling.
            wrap: makes the module a distributed one.
            watch: rows to judge by, NDCG@10 going to `report` after each quarter of the steps.
            report: see `Learner.fit_local`.
            checkpoint: see `Context`; of a fit by this worker alone.

        Raises:
            UserError: no request has both a history and something wanted; a loss, or what comes of
                the training, is no number; not enough memory.
            MorePartsNeeded: memory ran out in one of several workers.
        """
        import torch

        from raysys.text.augment.pairs import augment_pairs
        from raysys.text.towers import Towers
        from raysys.text.tuning import Course, Requests, fine_tune

        settings = self.settings
        torch.manual_seed(seed)
        batch = examples.batch()
        copies = None
        if settings.augmentation:
            copies = augment_pairs(batch, self.texts, settings.history, settings.augmentation)
        requests = Requests(batch, self.texts, settings.history, copies)
        if not len(requests.useful):
            raise no_positives(examples)
        rows = None
        if settings.head is not None:  # a small part of the batch, which need not be kept
            rows = thinned(batch, settings.head.candidates, seed, TwoTower.name)
            rows = with_some_positive(rows)
            if not rows.n_requests:  # nothing to tell apart: known before the towers are trained
                raise no_positives(examples)
        del batch
        encoder = self._open()
        states, augmented = self.states, {}
        if copies is not None:
            augmented = _of_all_workers(copies.counts(settings.augmentation), self.device)
            if copies.texts:
                states = states.followed_by(encoder.states(copies.texts, self.device))
        width = encoder.transformer.config.hidden_size
        towers = Towers(encoder.upper, width, settings.history, settings.sharpness)
        course = Course(**{name: getattr(settings, name) for name in Course.__dataclass_fields__})
        telling = _Telling(watch, report)

        def placed() -> TwoTowerModel:
            vectors = encoder.vectors(self.states, self.device).numpy()
            side = towers.user_side()
            return TwoTowerModel(self.texts, vectors, side, settings, encoder, None, augmented)

        def after_step(step: int, loss: float) -> None:
            if telling.due(step, settings.steps):
                telling.tell(step, placed())
                towers.to(self.device)

        fine_tune(
            towers,
            states,
            requests,
            course,
            seed=seed,
            device=self.device,
            wrap=wrap,
            after_step=after_step,
            checkpoint=checkpoint and checkpoint.of("towers"),
            parts=self.parts,
        )
        model = placed()
        if not np.isfinite(model.item_vectors).all():
            raise UserError(
                f"after {settings.steps} steps the vectors of items are no numbers",
                where=TwoTower.name,
                mend="take a lower learning_rate, or a longer warm_up",
            )
        encoder.settle()  # from here on it is as one that was loaded
        if rows is None:
            return model
        n_requests = replace(examples, shard=(0, 1)).requests().num_rows
        return self._with_head(
            *(model, rows, n_requests // examples.shard[1], seed, wrap, telling),
            checkpoint and checkpoint.of("head"),
        )

    def _with_head(
        self,
        model: TwoTowerModel,
        rows: Batch,
        n_requests: int,
        seed: int,
        wrap: Callable[[nn.Module], nn.Module] | None,
        telling: _Telling,
        checkpoint: CheckpointFolder | None,
    ) -> TwoTowerModel:
        """The model with a head fitted on this worker's rows.

        Args:
            model: the towers alone.
            rows: this worker's, of requests with something wanted.
            n_requests: of one worker, the same number in all, so that they take the same steps.
            seed: of the head.
            wrap: makes the module a distributed one.
            telling: of how it goes; its steps count on from the towers'.
            checkpoint: of the head alone; the towers' vectors are made again.
        """
        settings = self.settings.head
        assert settings is not None
        codes = self.texts.codes[rows.item]
        history = history_codes(rows.history, self.texts, self.settings.history)
        center = model.vectors.mean(axis=0)
        vectors = standard(model.vectors, center)
        steps = max(1, round(settings.epochs * n_requests / settings.batch_size))

        def with_head(head: Head) -> TwoTowerModel:
            side, towers = model.user_side, self.settings
            return TwoTowerModel(
                *(self.texts, model.vectors, side, towers, model.encoder, head, model.augmented)
            )

        def after_step(step: int, as_it_stands: Callable[[], Head]) -> None:
            if telling.due(step, steps):
                telling.tell(self.settings.steps + step, with_head(as_it_stands()))

        head = fit_head(
            settings.read(rows),
            model.tower_scores(codes, rows.offsets, history),
            codes,
            vectors,
            mean_of_history(vectors, history),
            center,
            settings,
            steps=steps,
            seed=seed,
            device=self.device,
            wrap=wrap,
            after_step=after_step,
            checkpoint=checkpoint,
            parts=self.parts,
        )
        return with_head(head)


class _Telling:
    """NDCG@10 on watched rows, told after each quarter of a training; silent without a listener."""

    def __init__(self, watch: Batch | None, report: Report | None) -> None:
        self._watch, self._report = watch, report
        self._judge = NDCG(watch) if watch is not None else None

    def due(self, step: int, steps: int) -> bool:
        """Whether step so-many of so-many ends a quarter, and somebody listens."""
        listened = self._judge is not None and self._report is not None
        return listened and (step % max(1, steps // 4) == 0 or step == steps)

    def tell(self, step: int, model: TwoTowerModel) -> None:
        """Judge a model and pass the figure on."""
        assert self._judge and self._report and self._watch
        self._report(step, self._judge(model.score(self._watch)))


def _of_all_workers(counts: dict[str, int], device: Any) -> dict[str, int]:
    """Counts summed over the workers of a distributed fit; of this one where it is alone."""
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    total = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    torch.distributed.all_reduce(total)
    return dict(zip(counts, total.tolist(), strict=True))


def train_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker does: every fold in turn, then one checkpoint from rank 0."""
    import ray.train
    import ray.train.torch
    import torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    catalogue = Catalogue.load(config["catalogue"])
    device = ray.train.torch.get_device()
    workshop = Workshop(config["settings"], catalogue, device, config["parts"])
    wrap = ray.train.torch.prepare_model if world > 1 else None
    kept: CheckpointFolder | None = config["checkpoint"]  # of a worker that is alone
    with tempfile.TemporaryDirectory() as folder, stopping(kept.root if kept else None):
        for number, examples in enumerate(config["folds"]):
            share = examples.of_worker(rank, world)
            own = kept and kept.of(f"fold={number}")
            model = workshop.fit(share, config["seed"] + rank, wrap=wrap, checkpoint=own)
            if rank == 0:
                place = Path(folder) / f"fold={number}"
                place.mkdir()
                model.save(place)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"folds": len(config["folds"])}, checkpoint=checkpoint)

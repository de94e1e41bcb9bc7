"""What both tree rankers share: features by name, one Ray Train run for all folds, fast scoring.

Ray Data is not used to feed the workers, on purpose: LambdaMART compares candidates of one request
with each other, so a request must lie whole in one worker, and Ray Data splits by rows. Each worker
reads its own requests from the features folder that all of them see.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.protocol import Context, Float32, Learner, Model, Report
from raysys.learners.sampling import thinned, with_some_positive
from raysys.learners.training import run_configs, threads_of, trained
from raysys.learners.validation import NDCG, chosen_features, no_positives, require_positives
from raysys.storage import CheckpointFolder

log = logging.getLogger("raysys")

ROWS_PER_THREAD = 8192
"""Fewer rows than twice this are scored in the caller's thread: a request when serving."""

RESUMED_TAIL = 0.25
"""Share of the newer rows by which it is judged whether more trees are better than none."""


class TreeSettings(Settings):
    """Settings that both libraries share, under one name each.

    Attributes:
        n_estimators: trees at most; fewer when the tail stops improving.
        learning_rate: weight of each tree.
        subsample: share of the rows that each tree sees.
        colsample: share of the features that each tree sees.
        lambda_l2: L2 regularisation of leaf values.
        max_bin: histogram bins a feature.
        truncation_level: pairs are formed with the best so many candidates of a request.
        early_stopping_rounds: stop after so many trees without a better NDCG@10 on the tail;
            0: never, and the tail is fitted on too.
        last_fraction: how much of the rows, the latest, is that tail.
        candidates: fit on at most so many candidates a request, all that were wanted among them
            and the others drawn at random: as good, and that much faster. 0: on all.
        features: names or patterns (`user_*`) of the features to read; empty: all.
        exclude: names or patterns of features not to read.
    """

    n_estimators: int = Field(300, ge=1, le=20_000)
    learning_rate: float = Field(0.08, gt=0, le=1)
    subsample: float = Field(0.8, gt=0, le=1)
    colsample: float = Field(0.7, gt=0, le=1)
    lambda_l2: float = Field(5.0, ge=0)
    max_bin: int = Field(127, ge=2, le=1024)
    truncation_level: int = Field(20, ge=1)
    early_stopping_rounds: int = Field(30, ge=0)
    last_fraction: float = Field(0.1, gt=0, lt=0.9)
    candidates: int = Field(40, ge=0)
    features: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def select(self, names: Sequence[str], *, where: str) -> tuple[str, ...]:
        """The features to read, in the plan's order.

        Raises:
            UserError: a pattern that matches nothing, or nothing is left.
        """
        return chosen_features(names, self.features, self.exclude, where=where)


@dataclass(frozen=True)
class Machine:
    """Where one booster trains.

    Attributes:
        threads: CPU threads of this worker.
        gpu: whether it has a GPU.
        network: what the library needs to reach the other workers; empty when alone.
    """

    threads: int = 1
    gpu: bool = False
    network: Mapping[str, Any] | None = None


T = TypeVar("T", bound=TreeSettings)


class TreeRanker(Learner[T], Generic[T]):
    """LambdaMART: boosted trees on the gradient of NDCG (Burges 2010, MSR-TR-2010-82)."""

    family: ClassVar[str] = "tree"
    steps: ClassVar[str] = "n_estimators"
    one_network_a_run: ClassVar[bool] = False
    """Whether several workers can connect only once in a Ray Train run."""

    @staticmethod
    @abstractmethod
    def train_booster(
        settings: Any,
        head: Batch,
        tail: Batch | None,
        *,
        seed: int,
        machine: Machine,
        report: Report | None = None,
        checkpoint: CheckpointFolder | None = None,
        onto: TreeModel | None = None,
    ) -> TreeModel:
        """Trees fitted on `head`, as many as rank `tail` best; same input, same trees.

        Args:
            settings: of the learner.
            head: this worker's labelled rows.
            tail: labelled rows for early stopping, the same in every worker; None: no stopping.
            seed: of row and column sampling.
            machine: threads, GPU, and the other workers.
            report: told NDCG@10 on the tail after each tree.
            checkpoint: see `Pieces`; the trees then differ from those without, after the first
                piece, in the rows and columns that were drawn.
            onto: trees of the same library that these are added to, reading the features that
                they read; the settings count the added ones. Not together with a checkpoint.
        """

    @staticmethod
    @abstractmethod
    def trainer() -> tuple[Callable[..., Any], Callable[[], Mapping[str, Any]]]:
        """Ray Train's trainer, and what tells a worker (inside its loop) of the other workers."""

    def reads(self, names: Sequence[str]) -> tuple[str, ...]:
        """See `Learner.reads`."""
        return self.settings.select(names, where=self.name)

    def fit(self, examples: Examples, context: Context) -> Model:
        """See `Learner.fit`; one Ray Train run."""
        return self.fit_folds([examples], context)[0]

    def fit_local(
        self, examples: Examples, context: Context, report: Report | None = None
    ) -> Model:
        """See `Learner.fit_local`: the same trees as `fit` with one worker of as many threads."""
        require_positives(examples)
        machine = Machine(
            threads=threads_of(context),
            gpu=context.resources.gpus_per_worker > 0,
        )
        return fit_here(
            *(type(self), self.settings, examples, context.seed, machine, report),
            checkpoint=context.checkpoint,
        )

    def resume(
        self, model: Model, examples: Examples, context: Context, steps: int, rate: float
    ) -> Model:
        """See `Learner.resume`: `steps` more trees at most, as many as rank the tail best.

        Where early stopping is on and these are not better than none by more than a standard
        error of the tail, the model stays: a few days teach less than they seem to.
        """
        assert isinstance(model, TreeModel)
        require_positives(examples)
        told = self.settings
        changed = {
            "n_estimators": steps,
            "learning_rate": told.learning_rate * rate,
            "last_fraction": max(told.last_fraction, RESUMED_TAIL),
        }
        machine = Machine(threads_of(context), context.resources.gpus_per_worker > 0)
        grown = fit_here(
            *(type(self), told.model_copy(update=changed), examples, context.seed, machine),
            onto=model,
        )
        if told.early_stopping_rounds:
            tail = examples.head_and_tail(changed["last_fraction"])[1].batch()
            judge = NDCG(tail)
            gain = judge.each(grown.score(tail)) - judge.each(model.score(tail))
            gain = gain[~np.isnan(gain)]
            if len(gain) < 2 or gain.mean() <= gain.std(ddof=1) / np.sqrt(len(gain)):
                return model
        return grown

    def fit_folds(self, folds: Sequence[Examples], context: Context) -> list[Model]:
        """See `Learner.fit_folds`: all folds in one Ray Train run, one after the other."""
        if len(folds) > 1 and context.resources.workers > 1 and self.one_network_a_run:
            return [self.fit(examples, context) for examples in folds]
        for examples in folds:
            self.reads(examples.names)
            require_positives(examples)
        make_trainer, _ = self.trainer()
        trainer = make_trainer(
            _train_loop,
            train_loop_config={
                "learner": type(self),
                "settings": self.settings,
                "folds": list(folds),
                "seed": context.seed,
                "threads": threads_of(context),
                "gpu": context.resources.gpus_per_worker > 0,
            },
            **run_configs(self.name, context),
        )
        with trained(trainer) as folder:
            return [
                self.model_class.load(folder / f"fold={number}", context.catalogue)
                for number in range(len(folds))
            ]


def fit_here(
    learner: type[TreeRanker[Any]],
    settings: TreeSettings,
    examples: Examples,
    seed: int,
    machine: Machine,
    report: Report | None = None,
    worker: tuple[int, int] = (0, 1),
    checkpoint: CheckpointFolder | None = None,
    onto: TreeModel | None = None,
) -> TreeModel:
    """Read one worker's share and train on it; in a Ray Train worker and in a tuning trial."""
    head_view, tail = examples, None
    if settings.early_stopping_rounds:
        before, last = examples.head_and_tail(settings.last_fraction)
        # every worker judges by the whole tail, so that all of them stop at the same tree
        rows = last.batch()
        if with_some_positive(rows).n_requests:
            head_view, tail = before, rows
        else:  # it would rank all numbers of trees alike, and the first of them be the best
            log.warning(
                "%s: nothing was wanted in the last %.0f%% of the rows, by which trees stop early: "
                "all %d are grown on all rows",
                *(learner.name, 100 * settings.last_fraction, settings.n_estimators),
            )
    head = head_view.of_worker(*worker).batch()
    # thinned first: what is copied after that is small
    head = with_some_positive(thinned(head, settings.candidates, seed, learner.name))
    if not head.n_requests:
        raise no_positives(examples)
    return learner.train_booster(
        *(settings, head, tail),
        seed=seed,
        machine=machine,
        report=report,
        checkpoint=checkpoint,
        onto=onto,
    )


def _train_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker does: every fold in turn, then one checkpoint from rank 0."""
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    learner: type[TreeRanker[Any]] = config["learner"]
    network = learner.trainer()[1]() if world > 1 else None
    machine = Machine(threads=config["threads"], gpu=config["gpu"], network=network)
    with tempfile.TemporaryDirectory() as folder:
        for number, examples in enumerate(config["folds"]):
            model = fit_here(
                learner, config["settings"], examples, config["seed"], machine, None, (rank, world)
            )
            place = Path(folder) / f"fold={number}"
            place.mkdir()
            model.save(place)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"folds": len(config["folds"])}, checkpoint=checkpoint)


class TreeModel(Model):
    """Fitted trees; subclasses say how rows are scored and what the file is."""

    @abstractmethod
    def predict(self, rows: Float32) -> npt.NDArray[np.floating]:
        """Scores of float32[n, len(requires)] rows, in this thread; safe in many at once."""

    @abstractmethod
    def shap(self, rows: Float32) -> npt.NDArray[np.floating]:
        """What each column of float32[n, f] adds to each score, then what all share: [n, f + 1].

        Tree SHAP (Lundberg, Erion & Lee 2018, arXiv:1802.03888), by the trees' own paths.
        """

    def contributions(self, batch: Batch) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
        """See `Explainable`."""
        rows = np.ascontiguousarray(batch.columns(self.requires))
        return self.requires, np.asarray(self.shap(rows), dtype=np.float64)[:, :-1]

    @abstractmethod
    def importance(self) -> dict[str, float]:
        """Total gain of each feature, in the units of the loss."""

    def score(self, batch: Batch) -> Float32:
        """See `Model.score`. Requests when serving stay in this thread; millions of rows do not."""
        rows = np.ascontiguousarray(batch.columns(self.requires))
        if len(rows) == 0:
            return np.empty(0, dtype=np.float32)
        if len(rows) < 2 * ROWS_PER_THREAD:
            return np.asarray(self.predict(rows), dtype=np.float32)
        starts = range(0, len(rows), ROWS_PER_THREAD)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(lambda at: self.predict(rows[at : at + ROWS_PER_THREAD]), starts)
            return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])


def write_meta(folder: Path, requires: Sequence[str]) -> None:
    """Write the names of the features, in the trees' column order."""
    (folder / "features.json").write_text(json.dumps(list(requires)) + "\n", encoding="utf-8")


def read_meta(folder: Path) -> tuple[str, ...]:
    """Read what `write_meta` wrote."""
    return tuple(json.loads((folder / "features.json").read_text(encoding="utf-8")))

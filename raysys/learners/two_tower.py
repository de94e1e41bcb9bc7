"""Two towers: a transformer fine-tuned on the texts a user bought × the text of an item.

Item vectors are computed when training ends; scoring is a matrix product, and neither a request
nor the report waits for a transformer. It reads texts and histories, not one feature.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.protocol import Context, Float32, Learner, Model, Report
from raysys.learners.trees import run_trainer
from raysys.learners.validation import NDCG, no_positives, require_positives
from raysys.text.histories import PAD, history_codes
from raysys.text.items import ItemTexts, item_texts

if TYPE_CHECKING:
    from torch import nn

    from raysys.text.encoder import Encoder, States
    from raysys.text.towers import UserSide

META = "two_tower.json"
TEXTS = "texts.json"
VECTORS = "vectors.safetensors"
ENCODER = "encoder"
REQUESTS_PER_TASK = 256


class TwoTowerSettings(Settings):
    """What is read, what is trained, for how long.

    Attributes:
        model: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging Face encoder.
        trainable_layers: upper layers that are fine-tuned; -1: all of them and the embeddings.
        text: columns of items that are read, in this order; empty: nearly all.
        max_tokens: read of each text.
        history: how many of the items last bought stand for a user.
        history_sample: how many of them, drawn at random, a training step looks at.
        steps: batches of training.
        batch_size: requests a batch and worker.
        negatives: candidates of the request itself that it did not want, beside the others'.
        learning_rate: of the transformer's layers, at its highest.
        head_learning_rate: of what joins a history's vectors.
        warm_up: share of the steps in which the rates rise.
        weight_decay: of the layers.
        temperature: of the softmax.
        sharpness: of the soft maximum over the history, to begin with.
        popularity_correction: 1 takes the popularity out (what is left is fit to the user),
            0 leaves it in.
        last_fraction: the latest part of the rows, left out where a search watches NDCG@10.
    """

    model: str = "all-MiniLM-L6-v2"
    trainable_layers: int = Field(1, ge=-1)
    text: tuple[str, ...] = ("subcategory", "category", "brand")
    max_tokens: int = Field(24, ge=4, le=512)
    history: int = Field(24, ge=1, le=200)
    history_sample: int = Field(8, ge=1)
    steps: int = Field(40, ge=1)
    batch_size: int = Field(32, ge=2)
    negatives: int = Field(6, ge=0)
    learning_rate: float = Field(1e-4, gt=0)
    head_learning_rate: float = Field(2e-3, gt=0)
    warm_up: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    temperature: float = Field(0.05, gt=0)
    sharpness: float = Field(10.0, gt=0)
    popularity_correction: float = Field(1.0, ge=0, le=1)
    last_fraction: float = Field(0.1, gt=0, lt=0.9)


class TwoTowerModel(Model):
    """Vectors of every distinct item text, and what joins those of a history; a `TextEncoder`.

    Args:
        texts: of the catalogue it scores.
        vectors: float32[len(texts), d], unit rows, in the order of `texts.distinct`.
        user_side: what turns a history into scores.
        settings: as fitted.
        encoder: a folder with the fine-tuned transformer, which is opened at the first `encode`;
            or the encoder itself.
    """

    def __init__(
        self,
        texts: ItemTexts,
        vectors: Float32,
        user_side: UserSide,
        settings: TwoTowerSettings,
        encoder: Path | Encoder,
    ) -> None:
        self.texts = texts
        self.vectors = vectors
        self.user_side = user_side
        self.settings = settings
        self._encoder = encoder
        self._opening = threading.Lock()

    @property
    def item_vectors(self) -> Float32:
        """See `TextEncoder`. Made anew at each call: of 90,000 items they weigh 140 MB."""
        return self.vectors[self.texts.codes]

    @property
    def encoder(self) -> Encoder:
        """The transformer; opened when first asked for, which takes seconds."""
        with self._opening:
            if isinstance(self._encoder, Path):
                from raysys.text.encoder import Encoder

                self._encoder = Encoder.open(
                    str(self._encoder), self.settings.max_tokens, self.settings.trainable_layers
                )
            return self._encoder

    def encode(self, texts: Sequence[str]) -> Float32:
        """See `TextEncoder`; an empty text gets zeros."""
        return self.encoder.encode(texts)

    @cached_property
    def _interests(self) -> Float32:
        """Each text's vector as a part of a history: float32[len(texts), d]."""
        return self.user_side.interests(self.vectors)

    def score(self, batch: Batch) -> Float32:
        """See `Model.score`: a soft maximum of cosines, plus what everybody wants."""
        codes = self.texts.codes[batch.item]
        history = history_codes(batch.history, self.texts, self.settings.history)
        scores = np.empty(len(batch), dtype=np.float32)
        interests = self._interests

        def score_some(first: int) -> None:
            for request in range(first, min(first + REQUESTS_PER_TASK, batch.n_requests)):
                a, b = batch.offsets[request], batch.offsets[request + 1]
                held = history[request][history[request] != PAD]
                scores[a:b] = self.user_side.score(interests[held], self.vectors[codes[a:b]])

        starts = range(0, batch.n_requests, REQUESTS_PER_TASK)
        if len(starts) <= 1:
            score_some(0)
        else:
            with ThreadPoolExecutor() as pool:
                list(pool.map(score_some, starts))
        return scores

    def save(self, folder: Path) -> None:
        """See `Model.save`: transformer and vectors as safetensors, tokenizer and texts as JSON."""
        from safetensors.numpy import save_file

        if isinstance(self._encoder, Path):
            shutil.copytree(self._encoder, folder / ENCODER)
        else:
            self._encoder.save(folder / ENCODER)
        side = self.user_side
        arrays = {
            "vectors": self.vectors,
            "turn": side.turn,
            "age": side.age,
            "common": side.common,
        }
        save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()},
                  folder / VECTORS)  # fmt: skip
        write_json(folder / TEXTS, self.texts.distinct)
        settings = self.settings.model_dump(mode="json")
        write_json(folder / META, {"settings": settings, "sharpness": side.sharpness})

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> TwoTowerModel:
        """See `Model.load`; texts that the catalogue gained since are encoded now."""
        from safetensors.numpy import load_file

        from raysys.text.towers import UserSide

        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = TwoTowerSettings(**meta["settings"])
        arrays = load_file(folder / VECTORS)
        known = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        texts = item_texts(catalogue, settings.text)
        user_side = UserSide(arrays["turn"], arrays["age"], arrays["common"], meta["sharpness"])
        model = cls(texts, arrays["vectors"], user_side, settings, folder / ENCODER)
        if list(texts.distinct) != known:
            place = {text: at for at, text in enumerate(known)}
            vectors = np.zeros((len(texts), arrays["vectors"].shape[1]), dtype=np.float32)
            gained = [at for at, text in enumerate(texts.distinct) if text not in place]
            kept = [at for at, text in enumerate(texts.distinct) if text in place]
            vectors[kept] = arrays["vectors"][[place[texts.distinct[at]] for at in kept]]
            if gained:
                vectors[gained] = model.encode([texts.distinct[at] for at in gained])
            model.vectors = vectors
        return model


class TwoTower(Learner[TwoTowerSettings]):
    """A fine-tuned transformer on both sides."""

    name = "two_tower"
    family: ClassVar[str] = "transformer"
    settings_model = TwoTowerSettings
    model_class: ClassVar[type[Model]] = TwoTowerModel

    def fit(self, examples: Examples, context: Context) -> Model:
        """See `Learner.fit`; one Ray Train run."""
        return self.fit_folds([examples], context)[0]

    def fit_local(
        self, examples: Examples, context: Context, report: Report | None = None
    ) -> Model:
        """See `Learner.fit_local`; with `report` the tail is left out and judged four times."""
        import torch

        require_positives(examples)
        gpu = context.resources.gpus_per_worker > 0
        device = torch.device("cuda" if gpu else "cpu")
        workshop = Workshop(self.settings, context.catalogue, device)
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, int(context.resources.cpus_per_worker)))
        try:
            if report is None:
                return workshop.fit(examples, context.seed)
            head, tail = examples.head_and_tail(self.settings.last_fraction)
            return workshop.fit(head, context.seed, watch=tail.batch(), report=report)
        finally:
            torch.set_num_threads(before)

    def fit_folds(self, folds: Sequence[Examples], context: Context) -> list[Model]:
        """See `Learner.fit_folds`: one Ray Train run, in which the frozen layers run once."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        item_texts(context.catalogue, self.settings.text)
        for examples in folds:
            require_positives(examples)
        resources = context.resources
        each = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            each["GPU"] = resources.gpus_per_worker
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"  # a name seen before would resume that run
        place = context.scratch / f"{name}-catalogue.parquet"
        context.scratch.mkdir(parents=True, exist_ok=True)
        context.catalogue.save(place)
        trainer = TorchTrainer(
            _train_loop,
            train_loop_config={
                "settings": self.settings,
                "folds": list(folds),
                "catalogue": place,
                "seed": context.seed,
                "threads": max(1, int(resources.cpus_per_worker)),
            },
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=each,
            ),
            run_config=RunConfig(name=name, storage_path=str(context.scratch)),
        )
        result = run_trainer(trainer)
        models = []
        with result.checkpoint.as_directory() as folder:
            for number in range(len(folds)):
                model = TwoTowerModel.load(Path(folder) / f"fold={number}", context.catalogue)
                _ = model.encoder  # open it while its folder is there
                models.append(model)
        shutil.rmtree(context.scratch / name, ignore_errors=True)
        place.unlink()
        return list(models)


class Workshop:
    """What fits of several folds share: texts, and what the frozen layers say of them.

    Args:
        settings: of the learner.
        catalogue: every item.
        device: to run on.
    """

    def __init__(self, settings: TwoTowerSettings, catalogue: Catalogue, device: Any) -> None:
        self.settings = settings
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
    ) -> TwoTowerModel:
        """Fine-tune on the examples, then place every item; from the pre-trained model each time.

        Args:
            examples: this worker's.
            seed: of the sampling.
            wrap: makes the module a distributed one.
            watch: rows to judge by, NDCG@10 going to `report` after each quarter of the steps.
            report: see `Learner.fit_local`.

        Raises:
            UserError: no request has both a history and something wanted.
        """
        import torch

        from raysys.text.towers import Towers
        from raysys.text.tuning import Course, Requests, fine_tune

        settings = self.settings
        torch.manual_seed(seed)
        requests = Requests(examples.batch(), self.texts, settings.history)
        if not len(requests.useful):
            raise no_positives(examples)
        encoder = self._open()
        width = encoder.transformer.config.hidden_size
        towers = Towers(encoder.upper, width, settings.history, settings.sharpness)
        course = Course(**{name: getattr(settings, name) for name in Course.__dataclass_fields__})
        judge = NDCG(watch) if watch is not None else None
        quarter = max(1, settings.steps // 4)

        def placed() -> TwoTowerModel:
            vectors = encoder.vectors(self.states, self.device).numpy()
            return TwoTowerModel(self.texts, vectors, towers.user_side(), settings, encoder)

        def after_step(step: int, loss: float) -> None:
            if judge is None or watch is None or report is None:
                return
            if step % quarter == 0 or step == settings.steps:
                report(step, judge(placed().score(watch)))
                towers.to(self.device)

        fine_tune(
            towers,
            self.states,
            requests,
            course,
            seed=seed,
            device=self.device,
            wrap=wrap,
            after_step=after_step,
        )
        return placed()


def _train_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker does: every fold in turn, then one checkpoint from rank 0."""
    import ray.train
    import ray.train.torch
    import torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    catalogue = Catalogue.load(config["catalogue"])
    workshop = Workshop(config["settings"], catalogue, ray.train.torch.get_device())
    wrap = ray.train.torch.prepare_model if world > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        for number, examples in enumerate(config["folds"]):
            share = examples.of_worker(rank, world)
            model = workshop.fit(share, config["seed"] + rank, wrap=wrap)
            if rank == 0:
                place = Path(folder) / f"fold={number}"
                place.mkdir()
                model.save(place)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"folds": len(config["folds"])}, checkpoint=checkpoint)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with its non-ASCII letters as they are."""
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

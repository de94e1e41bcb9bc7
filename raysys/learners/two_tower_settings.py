"""What two towers read, which layers of theirs are trained, and for how long."""

from __future__ import annotations

from pydantic import Field

from raysys.config import Settings
from raysys.learners.head import HeadSettings
from raysys.text.augment.settings import Augmentation


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
        head: the network over features and vectors; null: the towers alone, which read texts and
            histories and not one feature.
        augmentation: copies of the requests that the towers are fine-tuned on, of training rows
            only; off by default. The number of steps stays, and the head sees no copies.
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
    head: HeadSettings | None = HeadSettings()
    augmentation: Augmentation = Augmentation()

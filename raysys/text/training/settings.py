"""How a transformer is trained: the part of the YAML that every objective shares."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysys.config import Settings


class TrainingSettings(Settings):
    """Steps, rates, regularisation, precision.

    Attributes:
        epochs: passes over the examples; may be a fraction.
        max_steps: optimiser steps at most; null: as many as `epochs` take.
        batch_size: examples an optimiser step and worker.
        learning_rate: of the top layer of the pre-trained model, at its highest.
        head_learning_rate: of what was not pre-trained; null: as `learning_rate`.
        layer_decay: each layer below the top learns at this times the rate of the one above.
        weight_decay: L2, decoupled (AdamW); not on biases and norms.
        warm_up: share of the steps in which the rates rise.
        schedule: what follows the warm-up.
        clip: largest norm of a gradient; null: unlimited.
        dropout: of the transformer; null: as its configuration says.
        label_smoothing: of cross-entropy.
    """

    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float | None = Field(None, gt=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    warm_up: float = Field(0.06, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip: float | None = Field(1.0, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)

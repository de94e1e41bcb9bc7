"""Training of transformers: one loop for every objective, alone or over many workers."""

from raysys.text.training.objective import Objective
from raysys.text.training.run import Fitted, train
from raysys.text.training.settings import (
    CheckpointEvery,
    EvaluateEvery,
    LoraSettings,
    TrainingSettings,
)

__all__ = [
    "CheckpointEvery",
    "EvaluateEvery",
    "Fitted",
    "LoraSettings",
    "Objective",
    "TrainingSettings",
    "train",
]

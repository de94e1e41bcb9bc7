"""How a transformer is trained: the part of the YAML that every objective shares."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raysys.config import Settings


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2022) in place of the transformer's own weights.

    Attributes:
        rank: of each pair of matrices.
        alpha: their product counts alpha / rank times.
        dropout: of what goes into them.
        target_modules: names of the linear maps that get a pair; empty: those usual for the
            architecture (query and value of the attention).
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ()


class EvaluateEvery(Settings):
    """How often validation figures are taken: one of the two. The last step always has them."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> EvaluateEvery:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


class CheckpointEvery(Settings):
    """How often a run can be taken up again: one of the two, or both."""

    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _some(self) -> CheckpointEvery:
        if self.steps is None and self.seconds is None:
            raise ValueError("give steps or seconds")
        return self


class TrainingSettings(Settings):
    """Steps, rates, regularisation, precision, safety; what is not given is the learner's own.

    Attributes:
        epochs: passes over the examples; may be a fraction.
        max_steps: optimiser steps, instead of `epochs`; null: as many as those take.
        batch_size: examples an optimiser step and worker.
        micro_batch_size: examples that go through the model at once, their gradients summed up to
            the step's; null: all of `batch_size`. A loss that compares the examples of a batch
            with each other compares those of a micro-batch.
        length_window: batches whose examples are put in order of length before they are cut apart,
            so that little is padded; 1: none are.
        learning_rate: of the top layer of the pre-trained model, at its highest.
        head_learning_rate: of what was not pre-trained; null: as `learning_rate`.
        layer_decay: each layer below the top learns at this times the rate of the one above.
        trainable_layers: upper layers that are trained; -1: all of them and the embeddings.
        lora: train low-rank adapters, merged into the weights at the end; null: all weights.
        weight_decay: L2, decoupled (AdamW); not on biases and norms.
        warm_up: share of the steps in which the rates rise.
        schedule: what follows the warm-up: down to nothing in a line or half a cosine, or level.
        clip: largest norm of a gradient; null: unlimited.
        dropout: of the transformer; null: as its configuration says.
        label_smoothing: of cross-entropy.
        evaluate_every: steps or epochs between evaluations.
        patience: evaluations without a better criterion after which training stops; null: never.
        keep: the weights with the best criterion, or the last; without validation always the last.
        precision: bf16 autocast, or fp32; auto: bf16 where the hardware has it.
        gradient_checkpointing: compute activations twice rather than hold them.
        compile: translate the layers into fused kernels first (torch.compile), which takes half a
            minute and a C compiler, and pays on GPUs.
        strategy: what several workers share: ddp the gradients, fsdp the weights as well.
        checkpoint_every: steps or seconds between checkpoints; null: none.
        max_failures: how often a Ray Train run goes on from its last checkpoint after a worker
            died.
    """

    goes_over_default: ClassVar[bool] = True

    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    length_window: int = Field(50, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float | None = Field(None, gt=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    trainable_layers: int = Field(-1, ge=-1)
    lora: LoraSettings | None = None
    weight_decay: float = Field(0.01, ge=0)
    warm_up: float = Field(0.06, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip: float | None = Field(1.0, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    evaluate_every: EvaluateEvery = EvaluateEvery(epochs=1)
    patience: int | None = Field(None, ge=1)
    keep: Literal["best", "last"] = "best"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_every: CheckpointEvery | None = CheckpointEvery(seconds=600)
    max_failures: int = Field(2, ge=0)

    def length(self, within: str = "training") -> tuple[str, float]:
        """The setting that says how long training takes, and what it says: batches, or epochs.

        Args:
            within: the setting of a learner that holds these.
        """
        if self.max_steps is not None:
            return f"{within}.max_steps", self.max_steps
        return f"{within}.epochs", self.epochs

    @model_validator(mode="after")
    def _compiles_whole_layers(self) -> TrainingSettings:
        if self.compile and self.strategy == "fsdp":
            raise ValueError("compile goes with strategy: ddp; fsdp cuts the layers' weights apart")
        return self

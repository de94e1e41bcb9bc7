"""What `cross_encoder_ranker` may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raysys.config import Settings
from raysys.text.augment.settings import Augmentation
from raysys.text.training.settings import TrainingSettings


class CrossEncoderRankerSettings(Settings):
    """What is read, what it learns from, how it is trained.

    Attributes:
        model: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging Face model.
        fitted: a folder of a fitted `cross_encoder`, as `raysys text fit` leaves it under
            `text/NAME/models`: it is taken as it is, and nothing is trained; null: it is trained.
        judgements: a Parquet or CSV file of pairs to learn from: `query`, `text` or `item_id`,
            `grade`, perhaps `weight` and `split` (train, validation); null: from behaviour.
        loss: `listwise` compares all pairs of a query at once, `margin` two by two.
        text: columns of items that are read, in this order; empty: nearly all.
        max_tokens: read of a pair, marks included.
        history: without any query in the log, so many of the items last taken stand for one.
        requests: learn from so many at most, the last ones.
        negatives: candidates of each that it did not want.
        list_size: pairs of one query in a step, drawn if it has more.
        temperature: for `listwise`: of the grades' softmax, with grades between 0 and 1.
        augmentation: copies of what is learned from, with changed texts; none of what is judged,
            and none that reads like an original. Epochs go over them too.
        augments: which texts are changed: of a `query`, alike in all of its pairs, so that a copied
            list is as whole as the list it copies; or of an item (`text`), within the query's list.
        training: steps and rates; a batch counts queries.
        last_fraction: the latest part of the rows, left out where a search watches NDCG@10.
    """

    model: str = "all-MiniLM-L6-v2"
    fitted: str | None = None
    judgements: str | None = None
    loss: Literal["listwise", "margin"] = "listwise"
    text: tuple[str, ...] = ()
    max_tokens: int = Field(64, ge=8, le=4096)
    history: int = Field(8, ge=1, le=200)
    requests: int = Field(4000, ge=1)
    negatives: int = Field(7, ge=1)
    list_size: int = Field(12, ge=2)
    temperature: float = Field(0.25, gt=0)
    augmentation: Augmentation = Augmentation()
    augments: Literal["query", "text"] = "query"
    training: TrainingSettings = TrainingSettings(
        epochs=1, batch_size=8, learning_rate=5e-5, head_learning_rate=1e-3, warm_up=0.1
    )
    last_fraction: float = Field(0.1, gt=0, lt=0.9)

    @field_validator("augmentation")
    @classmethod
    def _texts_alone(cls, given: Augmentation) -> Augmentation:
        if given.history_methods:
            kinds = ", ".join(method.kind for method in given.history_methods)
            raise ValueError(f"methods: {kinds}: pairs of texts have no history to change")
        return given

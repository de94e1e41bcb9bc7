"""What copies of few training texts gain: each method alone, and all, against none, paired.

About 7 minutes on two busy cores. Needs the data that RAYSYS_DATA names (pricerunner, reviews) and
the extra `augment`. Back-translation is not among them: it needs models from the hub.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.result import Figure, write_result
from raysys.text.augment import Augmentation, augment_texts

SEEDS = 5
TEST = 2000
TYPOS = 99
"""Seed of the slips in the test texts: none of those of training."""

METHODS = {
    "synonym_replacement": ({"kind": "synonym_replacement"},),
    "spelling_noise": ({"kind": "spelling_noise"},),
    "word_dropout": ({"kind": "word_dropout"},),
    "word_swap": ({"kind": "word_swap"},),
}
METHODS["all"] = tuple(method for each in METHODS.values() for method in each)
READERS = {
    "words": {"ngram_range": (1, 2)},
    "letters": {"analyzer": "char_wb", "ngram_range": (2, 4)},
}
"""What TF-IDF counts: words and pairs of words, or runs of letters within words."""


@dataclass(frozen=True)
class Task:
    """Texts to be told apart: frame has text, label, group; no group is in training and test."""

    name: str
    per_class: int
    frame: pl.DataFrame


def tasks(data: Path) -> Iterator[Task]:
    """Offers by category (the same product by many shops is one group), reviews by verdict."""
    offers = pl.read_csv(data / "products" / "pricerunner.csv.gz", infer_schema_length=0)
    yield Task(
        "pricerunner",
        5,
        offers.select(text="product_title", label="category_label", group="cluster_id"),
    )
    reviews = pl.read_csv(data / "reviews" / "womens_clothing.csv.gz", infer_schema_length=0)
    reviews = reviews.filter(pl.col("Review Text").is_not_null()).with_row_index("row")
    yield Task(
        "reviews", 30, reviews.select(text="Review Text", label="Recommended IND", group="row")
    )


def split(task: Task, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """So many training texts a class, and TEST others, by drawn groups."""
    rng = np.random.default_rng(seed)
    groups = task.frame["group"].unique().sort()
    groups = groups.gather(rng.permutation(len(groups)))
    half = len(groups) // 2
    mixed = task.frame[rng.permutation(task.frame.height)]
    train = mixed.filter(pl.col("group").is_in(groups[:half].implode()))
    test = mixed.filter(pl.col("group").is_in(groups[half:].implode()))
    return train.group_by("label", maintain_order=True).head(task.per_class), test.head(TEST)


def fitted(
    train: pl.DataFrame, settings: Augmentation, reader: str
) -> tuple[TfidfVectorizer, LogisticRegression]:
    """TF-IDF, then logistic regression, on texts and their copies."""
    copies = augment_texts(train["text"], np.arange(train.height), settings)
    source = copies["row"].to_numpy()
    texts = [*train["text"], *copies["text"]]
    labels = np.concatenate([train["label"], train["label"].to_numpy()[source]])
    of_row = np.concatenate([np.arange(train.height), source])
    weight = 1 / np.bincount(of_row)[of_row]  # a text and its copies weigh what it weighed
    vectors = TfidfVectorizer(**READERS[reader], sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    return vectors, model.fit(vectors.fit_transform(texts), labels, sample_weight=weight)


def scores(
    train: pl.DataFrame, tests: dict[str, pl.DataFrame], settings: Augmentation, reader: str
) -> dict[str, float]:
    """Balanced accuracy on each test set: the mean over classes of what is right."""
    vectors, model = fitted(train, settings, reader)
    found = {}
    for name, test in tests.items():
        right = model.predict(vectors.transform(test["text"])) == test["label"].to_numpy()
        of_class = pl.DataFrame({"label": test["label"], "right": right}).group_by("label")
        found[name] = float(of_class.agg(pl.col("right").mean())["right"].mean())
    return found


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t."""
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def measure(task: Task, reader: str, copies: int) -> list[Figure]:
    """None and each method on the same draws, on clean test texts and on misspelt ones."""
    found: dict[tuple[str, str], list[float]] = {}
    slips = Augmentation(methods=({"kind": "spelling_noise"},), seed=TYPOS)
    for seed in range(SEEDS):
        train, test = split(task, seed)
        made = augment_texts(test["text"], np.arange(test.height), slips)
        misspelt = test["text"].to_list()
        for row, text in zip(made["row"], made["text"], strict=True):
            misspelt[row] = text
        tests = {"": test, "_misspelt": test.with_columns(text=pl.Series(misspelt))}
        for name, methods in {"none": (), **METHODS}.items():
            settings = Augmentation(methods=methods, copies=copies, seed=seed)
            for which, value in scores(train, tests, settings, reader).items():
                found.setdefault((which, name), []).append(value)
    figures = []
    for which, methods in (("", tuple(METHODS)), ("_misspelt", ("spelling_noise", "all"))):
        name = f"{task.name}_{reader}{which}"
        none = np.array(found[which, "none"])
        note = f"no copies; {task.per_class} texts a class, {SEEDS} draws of them"
        figures.append(Figure(f"{name}_none", *interval_of(none), reference=note))
        for method in methods:
            gain = np.array(found[which, method]) - none
            note = f"paired difference to {name}_none; {copies} copies a method"
            figures.append(Figure(f"{name}_gain_{method}", *interval_of(gain), reference=note))
    return figures


def interval_of(values: np.ndarray) -> tuple[float, str, float, float]:
    """Value, unit, low and high, as `Figure` wants them."""
    mean, low, high = interval(values)
    return mean, "balanced accuracy", low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=4)
    arguments = parser.parse_args()
    data = os.environ.get("RAYSYS_DATA")
    if not data:
        raise SystemExit("set RAYSYS_DATA to the folder with products/ and reviews/")
    started = time.monotonic()
    figures = [
        figure
        for task in tasks(Path(data))
        for reader in READERS
        for figure in measure(task, reader, arguments.copies)
    ]
    write_result("augmentation", figures, time.monotonic() - started)


if __name__ == "__main__":
    main()

"""What pre-training on a shop's own texts gains: the same fine-tuning, or search, with and without.

About ten minutes on two cores; a part alone with its name: chinese, titles, icecat. Needs the
data that RAYSYS_DATA names. No test text is pre-trained on, nothing is chosen on test texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from benchmarks.result import Figure
from benchmarks.text_data import chinese, data_folder, divided, pricerunner
from benchmarks.text_results import write_text_result
from raysys.evaluation.intervals import Bootstrap
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext
from raysys.text.encoder import Encoder
from raysys.text.models import PACKAGED, open_model
from raysys.text.pretraining import (
    ContrastiveObjective,
    ContrastiveSettings,
    MaskedObjective,
    MaskedSettings,
    Pairs,
    PairSettings,
    tokenise,
)
from raysys.text.pretraining.corpus import is_held_out, text_hashes
from raysys.text.scratch import ScratchSettings, make_model
from raysys.text.training import Fitted, Objective, TrainingSettings, train

SEEDS = 3
SEED = 0
"""Of splits, pre-training and resampling; fine-tuning draws its texts by seeds 0 to SEEDS - 1."""
DRAWS = 2000
OTHERS = 2500
"""Products of Icecat that nobody judged, searched beside those that somebody did."""


@dataclass(frozen=True)
class Learned:
    """A pre-training: its folder, figures before and after, what it took."""

    folder: Path
    before: dict[str, float]
    fitted: Fitted
    new_head: bool = False

    def figure(self, name: str, of: str, unit: str) -> Figure:
        before = f"{self.before[of]:,.4g} before"
        if self.new_head:
            before += ", by a head drawn anew"
        spent = f"{self.fitted.steps} steps in {self.fitted.seconds:.0f} s"
        return Figure(name, self.fitted.figures[of], unit, reference=f"{before}; {spent}")

    def speed(self, name: str) -> Figure:
        return Figure(name, self.fitted.examples_per_s, "examples/s", reference="one core")


def learn(
    objective: Objective, training: TrainingSettings, folder: Path, *, mine: bool = False
) -> Learned:
    """Judge, train, judge."""
    torch.manual_seed(SEED)
    module = objective.build().eval()
    new_head = bool(getattr(module, "head_is_new", False))
    with torch.inference_mode():
        before = dict(objective.evaluate(module))
        if mine:
            objective.refresh(module, 0)
    del module
    fitted = train(objective, training, folder, seed=SEED)
    print(f"  {objective.title}: {before} → {fitted.figures}", flush=True)
    return Learned(folder, before, fitted, new_head)


def masked(
    model: str, texts: Sequence[str], folder: Path, tokens: int, training: TrainingSettings
) -> Learned:
    """Masked language modelling on some texts, of which one in fifty is held out."""
    _, tokenizer = open_model(model, where="benchmark")
    held = is_held_out(text_hashes(texts), 0.02)
    parts = [
        tokenise(
            [[text for text, out in zip(texts, held, strict=True) if out == wanted]],
            *(tokenizer, folder / name),
            longest=tokens - 2,
        )
        for name, wanted in (("train", False), ("held_out", True))
    ]
    settings = MaskedSettings(max_tokens=tokens, judge_on=300, training=training)
    return learn(MaskedObjective(model, *parts, settings, SEED), training, folder / "model")


# ── fine-tuning on few labels, with and without ──────────────────────────────────────────────


def right(
    learner: str,
    task: str,
    settings: dict[str, Any],
    tables: dict[str, pa.Table],
    few: Callable[[int], pa.Table],
    scratch: Path,
) -> np.ndarray:
    """Which test texts get their label, by seed: bool[SEEDS, n]."""
    found = []
    truth = np.array(tables["test"]["label"].to_pylist())
    for seed in range(SEEDS):
        made = make_text_learner(learner, settings, task=task)
        model = made.fit(few(seed), tables["validation"], TextContext(scratch, seed))
        said = model.predict(tables["test"])["choices"].to_pylist()
        found.append(np.array([choices[0]["label"] for choices in said]) == truth)
        print(f"  {learner}, seed {seed}: {found[-1].mean():.4f}", flush=True)
    return np.stack(found)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of float[seeds, n], and its 95% interval over draws of seeds and of texts."""
    rng = np.random.default_rng(SEED)
    seeds, n = values.shape
    draws = [
        values[rng.integers(seeds, size=seeds)].mean(0)[rng.integers(n, size=n)].mean()
        for _ in range(DRAWS)
    ]
    return float(values.mean()), *(float(q) for q in np.quantile(draws, [0.025, 0.975]))


def accuracies(
    prefix: str, told: str, with_it: np.ndarray, without: np.ndarray, baseline: np.ndarray
) -> list[Figure]:
    """Accuracy with, without, of the baseline on words, and the paired gain."""
    rows = [
        ("accuracy", with_it.astype(float), told),
        ("accuracy_without", without.astype(float), "the same fine-tuning, not pre-trained"),
        ("accuracy_tfidf", baseline.astype(float), "a linear model over TF-IDF, the same labels"),
        ("gain", with_it.astype(float) - without, f"paired, drawn by text and {SEEDS} seeds"),
    ]
    found = []
    for name, values, reference in rows:
        mean, low, high = interval(values)
        found.append(Figure(f"{prefix}_{name}", mean, "accuracy", low, high, "", reference))
    return found


def sample(table: pa.Table, n: int, seed: int) -> pa.Table:
    rows = np.random.default_rng([SEED, seed]).permutation(len(table))[:n]
    return table.take(pa.array(np.sort(rows)))


def by_label(table: pa.Table, n: int, seed: int) -> pa.Table:
    """So many texts of each label."""
    frame = pl.DataFrame({"label": table["label"].to_pylist()}).with_row_index("row")
    order = np.random.default_rng([SEED, seed]).permutation(frame.height)
    rows = frame[order].group_by("label", maintain_order=True).head(n)["row"].sort()
    return table.take(pa.array(rows.to_numpy()))


def measure_chinese(scratch: Path) -> list[Figure]:
    """A new small BERT on Chinese reviews, 1,000 of them with labels."""
    tables = divided(chinese(), SEED)
    texts = sample(tables["train"], 16_000, SEED)["text"].to_pylist()
    tables["test"] = sample(tables["test"], 2000, SEED)
    tables["validation"] = sample(tables["validation"], 300, SEED)
    shape = ScratchSettings(layers=2, width=128, heads=4, vocabulary=6000, max_tokens=64)
    made = make_model(shape, texts, SEED, scratch / "new")
    training = TrainingSettings(
        max_steps=500, batch_size=32, learning_rate=1e-3, checkpoint_every=None
    )
    learned = masked(str(made.folder), texts, scratch / "masked", 64, training)
    settings = {
        "max_tokens": 64,
        "training": {"epochs": 5, "batch_size": 16, "learning_rate": 3e-4, "keep": "best",
                     "label_smoothing": 0.0, "checkpoint_every": None},
    }  # fmt: skip

    def fit(learner: str, given: dict[str, Any]) -> np.ndarray:
        return right(
            *(learner, "sentiment", given, tables),
            lambda seed: sample(tables["train"], 1000, seed), scratch,
        )  # fmt: skip

    told = (
        f"a new BERT, {made.parameters / 1e6:.1f}M weights, pre-trained on {len(texts):,} reviews "
        "without labels, fine-tuned on 1,000"
    )
    return [
        *accuracies(
            *("pretraining_chinese", told),
            fit("text_classifier", {**settings, "model": str(learned.folder)}),
            fit("text_classifier", {**settings, "model": str(made.folder)}),
            fit("tfidf_classifier", {}),
        ),
        learned.figure("pretraining_chinese_perplexity", "perplexity", "of a masked token"),
        learned.speed("pretraining_chinese_speed"),
    ]


def measure_titles(scratch: Path) -> list[Figure]:
    """The packaged MiniLM on titles of offers, ten of each category with labels."""
    tables = divided(pricerunner(), SEED)
    texts = tables["train"]["text"].to_pylist()
    tables["test"] = sample(tables["test"], 1000, SEED)
    tables["validation"] = sample(tables["validation"], 100, SEED)
    training = TrainingSettings(
        max_steps=120,
        batch_size=32,
        learning_rate=1e-4,
        head_learning_rate=1e-3,
        checkpoint_every=None,
    )
    learned = masked(PACKAGED, texts, scratch / "masked", 32, training)
    settings = {
        "max_tokens": 32,
        "training": {"epochs": 8, "batch_size": 16, "learning_rate": 1e-4, "keep": "best",
                     "head_learning_rate": 1e-3, "checkpoint_every": None,
                     "label_smoothing": 0.0, "evaluate_every": {"epochs": 4}},
    }  # fmt: skip

    def fit(learner: str, given: dict[str, Any]) -> np.ndarray:
        return right(
            *(learner, "classify", given, tables),
            lambda seed: by_label(tables["train"], 10, seed), scratch,
        )  # fmt: skip

    told = (
        f"MiniLM, pre-trained on {training.max_steps * 32:,} of {len(texts):,} titles without "
        "labels, fine-tuned on 10 a category"
    )
    return [
        *accuracies(
            *("pretraining_titles", told),
            fit("text_classifier", {**settings, "model": str(learned.folder)}),
            fit("text_classifier", {**settings, "model": PACKAGED}),
            fit("tfidf_classifier", {}),
        ),
        learned.figure("pretraining_titles_perplexity", "perplexity", "of a masked token"),
        learned.speed("pretraining_titles_speed"),
    ]


# ── search without any query to learn from ───────────────────────────────────────────────────


def products() -> list[dict[str, Any]]:
    """Icecat's catalogue: id, title with its maker, and what is said of the product."""
    path = data_folder() / "search" / "icecat_products.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = []
    for row in rows:
        title, maker = " ".join((row["title"] or "").split()), row.get("supplier") or ""
        title = title if maker.casefold() in title.casefold() else f"{maker} {title}"
        told = [row.get("attr_t_product_type"), row.get("short_description")]
        found.append(
            {
                "id": str(row["id"]),
                "title": title,
                "said": ". ".join(each for each in told if each),
                "kind": row.get("attr_t_product_type"),
            }
        )
    return found


def pairs_of(rows: Sequence[dict[str, Any]]) -> Pairs:
    """Titles and what is said of the product, both ways."""
    kinds = {kind: at for at, kind in enumerate(sorted({r["kind"] for r in rows if r["kind"]}))}
    found = []
    for number, row in enumerate(rows):
        if row["title"] and row["said"]:
            kind = kinds.get(row["kind"], -1)
            for one, other in ((row["title"], row["said"]), (row["said"], row["title"])):
                found.append(("titles", one, other, number, number, kind))
    return Pairs.of(found, 0.02)


def search(model: str, rows: Sequence[dict[str, Any]], judged: pl.DataFrame) -> np.ndarray:
    """NDCG@10 (gain: the judgement) and recall@10 (of judgements from 2) by query: float[q, 2]."""
    encoder = Encoder.open(model, 24, -1)
    vectors = encoder.encode([row["title"] for row in rows])
    place = {row["id"]: at for at, row in enumerate(rows)}
    found = []
    for (query,), group in judged.group_by("query", maintain_order=True):
        gain = np.zeros(len(rows))
        for docid, rating in group.select("docid", "rating").iter_rows():
            if docid in place:
                gain[place[docid]] = rating
        scores = vectors @ encoder.encode([query])[0]
        top = np.argsort(-scores, kind="stable")[:10]
        discount = 1 / np.log2(np.arange(10) + 2)
        ideal = (np.sort(gain)[::-1][:10] * discount).sum()
        wanted = (gain >= 2).sum()
        found.append(
            [
                (gain[top] * discount).sum() / ideal if ideal else np.nan,
                (gain[top] >= 2).sum() / min(10, wanted) if wanted else np.nan,
            ]
        )
    return np.array(found)


def measure_icecat(scratch: Path) -> list[Figure]:
    """MiniLM brings together titles and descriptions; then it searches, all queries unseen."""
    rows = products()
    judged = pl.read_csv(
        data_folder() / "search" / "icecat_judgements.csv", schema_overrides={"docid": pl.String}
    )
    pairs = pairs_of(rows)
    training = TrainingSettings(
        max_steps=60, batch_size=32, learning_rate=3e-5, warm_up=0.1, checkpoint_every=None,
        evaluate_every={"steps": 60},
    )  # fmt: skip
    settings = ContrastiveSettings(
        pairs=PairSettings(sources=("titles",)), max_tokens=32, judge_on=200, judge_among=500,
        hard_negatives={"count": 0}, training=training,
    )  # fmt: skip
    _, tokenizer = open_model(PACKAGED, where="benchmark")
    tokens = tokenise([pairs.texts], tokenizer, scratch / "pairs", longest=32, pieces=False)
    objective = ContrastiveObjective(PACKAGED, pairs, tokens, settings, SEED)
    learned = learn(objective, training, scratch / "contrastive")
    known_ids = set(judged["docid"])
    mixed = np.random.default_rng(SEED).permutation(len(rows))
    others = [rows[at] for at in mixed if rows[at]["id"] not in known_ids][:OTHERS]
    searched = [row for row in rows if row["id"] in known_ids] + others
    with_it = search(str(learned.folder), searched, judged)
    without = search(PACKAGED, searched, judged)
    figures = []
    draws = Bootstrap(np.arange(len(with_it)), resamples=DRAWS, seed=SEED)
    for at, name in enumerate(("ndcg10", "recall10")):
        known = int((~np.isnan(with_it[:, at])).sum())
        note = f"MiniLM, {training.max_steps} steps on titles and descriptions; {known} queries"
        for label, found, reference in (
            (name, draws.mean(with_it[:, at]), f"{note}, {len(searched):,} products"),
            (f"{name}_without", draws.mean(without[:, at]), "MiniLM as it comes"),
            (
                f"{name}_gain",
                draws.difference(with_it[:, at], without[:, at]),
                "paired, drawn by query",
            ),
        ):
            figures.append(
                Figure(
                    f"pretraining_icecat_{label}",
                    found.value,
                    name,
                    found.low,
                    found.high,
                    "",
                    reference,
                )
            )
    figures.append(
        learned.figure("pretraining_icecat_pairs", "recall_at_10", "recall@10 of held-out pairs")
    )
    figures.append(learned.speed("pretraining_icecat_speed"))
    return figures


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "chinese": measure_chinese,
    "titles": measure_titles,
    "icecat": measure_icecat,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    wanted: Iterable[str] = parser.parse_args().parts or PARTS
    for name in wanted:
        if name not in PARTS:
            raise SystemExit(f"no part {name!r}: choose among {', '.join(PARTS)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in wanted:
        print(name, flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            figures = PARTS[name](Path(scratch))
        write_text_result(figures, time.monotonic() - started, part=name)


if __name__ == "__main__":
    main()

"""Text classifiers on public reviews and titles: linear baselines, transformers, their blend.

Under twenty minutes a part on two cores, by estimate for three splits: chinese and pricerunner
with three splits, each with a seed of its own, sentiment and recommended with one (`--seeds`),
pseudo_labels with three draws of the labels. A part alone with its name. Needs the data that
RAYSYS_DATA names. Nothing is chosen on test texts; of sentiment and recommended that is judged
which `raysys text fit` would choose on validation, be it the baseline.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.result import Figure
from benchmarks.text_data import MOST, chinese, clothing, divided, pricerunner
from benchmarks.text_queries import shown
from benchmarks.text_results import over_seeds, write_text_result
from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.evaluation.text_judge import TextJudge
from raysys.evaluation.text_metrics import LabelJudgement, calibration_error, squared_errors
from raysys.learners.label_model import LabelModel
from raysys.learners.text import make_text_learner, text_learner_class
from raysys.learners.text_blend import blend
from raysys.learners.text_calibration import ThresholdSettings, softmax
from raysys.learners.text_labels import LabelTask
from raysys.learners.text_protocol import TextContext
from raysys.stages.text_judging import Fit, simplest

LIKELIEST = {"choose": "none"}
SEEDS = {"chinese": 3, "pricerunner": 3, "sentiment": 1, "recommended": 1}
"""Splits of a part; `pseudo_labels` draws by itself."""
WORDS = [("words", 1, 2)]
"""What the classic baseline reads of English."""


@dataclass
class Trial:
    """One data set: its splits, what was fitted on them, and how it does on the test texts."""

    task: LabelTask
    tables: dict[str, pa.Table]
    scratch: Path
    seed: int
    models: dict[str, tuple[str, LabelModel]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    said: dict[tuple[str, str], pa.Table] = field(default_factory=dict)
    speed: dict[tuple[str, str], float] = field(default_factory=dict)

    def fit(
        self, name: str, learner: str, settings: dict[str, Any], train: pa.Table | None = None
    ) -> LabelModel:
        """Fit a learner and say what it reaches on validation."""
        began = time.monotonic()
        made = make_text_learner(learner, settings, task=self.task)
        rows = self.tables["train"] if train is None else train
        model = made.fit(rows, self.tables["validation"], TextContext(self.scratch, self.seed))
        assert isinstance(model, LabelModel)
        self.models[name] = (learner, model)
        self.seconds[name] = time.monotonic() - began
        print(f"  {name}: {self.seconds[name]:.0f} s", flush=True)
        return model

    def blend(self, *names: str, thresholds: dict[str, Any]) -> LabelModel:
        """Blend what was fitted; weights from validation."""
        model = blend(
            {name: self.models[name] for name in names},
            self.tables["train"],
            self.tables["validation"],
            thresholds=ThresholdSettings(**thresholds),
        )
        self.models["blend"] = ("text_blend", model)
        self.seconds["blend"] = sum(self.seconds[name] for name in names)
        shares = {name: round(share, 2) for name, share in model.weights.items()}
        print(f"  weights {shares}, of ratings {model.rating_weights}", flush=True)
        return model

    def chosen(self, baseline: str) -> str:
        """What `raysys text fit` would publish of all that was fitted; by validation texts."""
        table = self.tables["validation"]
        groups = np.unique(table["group"].to_numpy(), return_inverse=True)[1]
        judging = TextJudge(self.task, table, groups, seed=self.seed)
        verdicts, fits = {}, {}
        for name, (learner, model) in self.models.items():
            verdicts[name] = judging.verdict(self.predicted(name, "validation"))
            family = "blend" if name == "blend" else text_learner_class(learner).family
            fits[name] = Fit(model, family, self.seconds[name], [])
        value = {name: each.figures[judging.criterion].value for name, each in verdicts.items()}
        found = simplest(value, fits, verdicts, judging)
        lead = "the baseline wins and is used" if found == baseline else f"{found} is chosen"
        shown = {name: round(each, 4) for name, each in value.items()}
        print(f"  {lead}: {judging.criterion} on validation {shown}", flush=True)
        return found

    def judged(self, name: str, split: str = "test") -> LabelJudgement:
        said = self.predicted(name, split)["label"].to_pylist()
        return LabelJudgement.of(said, self.tables[split]["label"].to_pylist())

    def predicted(self, name: str, split: str = "test") -> pa.Table:
        """What a model says, asked once; and how many texts it labelled a second."""
        if (name, split) not in self.said:
            began = time.monotonic()
            self.said[name, split] = self.models[name][1].predict(self.tables[split])
            self.speed[name, split] = len(self.tables[split]) / (time.monotonic() - began)
        return self.said[name, split]

    def bootstrap(self) -> Bootstrap:
        """Draws of whole groups of test texts, the same for all."""
        groups = np.unique(self.tables["test"]["group"].to_numpy(), return_inverse=True)[1]
        return Bootstrap(groups, seed=self.seed)


def told(name: str, interval: Interval, unit: str, reference: str, aim: str = "") -> Figure:
    return Figure(name, interval.value, unit, interval.low, interval.high, aim, reference)


def accuracy_figures(
    trial: Trial, prefix: str, baseline: str, ours: str, what: str, aim: str
) -> list[Figure]:
    """Accuracy of ours and of the baseline, their paired difference, seconds and speed."""
    draws = trial.bootstrap()
    mine, plain = trial.judged(ours).right, trial.judged(baseline).right
    n = len(mine)
    split = f"{len(trial.tables['train']):,} training, {n:,} test texts, split {trial.seed}"
    gain = draws.difference(mine, plain)
    return [
        told(f"{prefix}_accuracy", draws.mean(mine), "accuracy", f"{what}; {split}", aim),
        told(f"{prefix}_accuracy_baseline", draws.mean(plain), "accuracy", BASELINES[prefix]),
        told(f"{prefix}_accuracy_gain", gain, "accuracy", "paired difference to the baseline"),
        *cost_figures(trial, prefix, ours),
    ]


BASELINES = {
    "chinese": "TF-IDF of characters 1–3 and jieba words 1–2, logistic regression",
    "pricerunner": "TF-IDF of words 1–2, linear support vector machine",
    "recommended": "TF-IDF of words 1–2, logistic regression",
}


def cost_figures(trial: Trial, prefix: str, ours: str) -> list[Figure]:
    parts = trial.models[ours][1]
    kept = ", ".join(getattr(parts, "weights", {ours: 1.0}))
    learned = len(trial.tables["train"]) / trial.seconds[ours]
    return [
        Figure(f"{prefix}_seconds", trial.seconds[ours], "s", reference="all members fitted"),
        Figure(
            f"{prefix}_labels_per_s",
            trial.speed[ours, "test"],
            "texts/s",
            reference=f"labelled by {kept}",
        ),
        Figure(
            f"{prefix}_train_examples_per_s",
            learned,
            "texts/s",
            reference="training texts over the seconds of all fits, all choices included",
        ),
    ]


def calibration_figures(trial: Trial, prefix: str, name: str) -> list[Figure]:
    """Expected calibration error on test texts as the network is and at its temperature."""
    model, test = trial.models[name][1], trial.tables["test"]
    logits = model.scores(test["text"].to_pylist()).logits
    codes = model.labels.codes(test["label"].to_pylist(), where="test")
    before = calibration_error(softmax(logits), codes)
    after = calibration_error(model.labelling.calibration.probabilities(logits), codes)
    warm = f"at temperature {model.labelling.calibration.temperature:.2f}, of validation texts"
    as_is, error = f"{name}, test texts", f"{prefix}_calibration_error"
    return [
        Figure(f"{error}_before", before, "ECE", reference=as_is),
        Figure(error, after, "ECE", reference=warm),
    ]


def measure_chinese(scratch: Path, seed: int) -> list[Figure]:
    """Two linear models that read differently, and their blend."""
    trial = Trial("sentiment", divided(chinese(), seed), scratch, seed)
    shared = {"costs": [1.0, 4.0, 16.0], "thresholds": LIKELIEST}
    trial.fit("tfidf", "tfidf_classifier", shared)
    ratios = {**shared, "weighting": "nb", "terms": [("characters", 1, 3)]}
    trial.fit("nb", "tfidf_classifier", ratios)
    trial.blend("tfidf", "nb", thresholds=LIKELIEST)
    what = "blend of the baseline and of characters 1–3 weighed by log-count ratios"
    return [
        *accuracy_figures(trial, "chinese", "tfidf", "blend", what, ">= .93"),
        *calibration_figures(trial, "chinese", "blend"),
    ]


def measure_pricerunner(scratch: Path, seed: int) -> list[Figure]:
    """Offers of one product in one split; what a random split would have said beside it."""
    trial = Trial("classify", divided(pricerunner(), seed), scratch, seed)
    fit_pricerunner(trial)
    trial.fit("transformer", "text_classifier", minilm(32, layers=2, epochs=1.0, rate=3e-4))
    trial.blend("tfidf", "nb", "transformer", thresholds=LIKELIEST)
    what = "blend of linear models over words and letters and of MiniLM, products apart"
    figures = accuracy_figures(trial, "pricerunner", "svm", "blend", what, "> baseline")
    figures += calibration_figures(trial, "pricerunner", "transformer")
    draws = trial.bootstrap()
    alone = draws.mean(trial.judged("transformer").right)
    figures.append(told("pricerunner_accuracy_transformer", alone, "accuracy", "MiniLM alone"))
    mixed = Trial("classify", divided(pricerunner(grouped=False), seed), scratch, seed)
    fit_pricerunner(mixed)
    mixed.blend("tfidf", "nb", thresholds=LIKELIEST)
    for name, model in (("", "blend"), ("_baseline", "svm")):
        value = mixed.bootstrap().mean(mixed.judged(model).right)
        note = "split at random: offers of one product in training and test; linear models only"
        figures.append(told(f"pricerunner_random_split_accuracy{name}", value, "accuracy", note))
    return figures


def fit_pricerunner(trial: Trial) -> None:
    classic = {"classifier": "svm", "terms": WORDS, "costs": [0.1, 0.3, 1.0, 3.0]}
    trial.fit("svm", "tfidf_classifier", {**classic, "thresholds": LIKELIEST})
    trial.fit("tfidf", "tfidf_classifier", {"costs": [3.0, 10.0, 30.0], "thresholds": LIKELIEST})
    ratios = {"weighting": "nb", "costs": [0.3, 1.0, 3.0], "thresholds": LIKELIEST}
    trial.fit("nb", "tfidf_classifier", ratios)


def minilm(tokens: int, *, layers: int, epochs: float, rate: float, **more: Any) -> dict[str, Any]:
    """Settings of the packaged transformer, its upper layers fine-tuned."""
    training = {
        "epochs": epochs, "learning_rate": rate, "trainable_layers": layers,
        "label_smoothing": 0.05, "head_learning_rate": 1e-3, "checkpoint_every": None,
    }  # fmt: skip
    return {"max_tokens": tokens, "training": training, "thresholds": LIKELIEST, **more}


def some(table: pa.Table, n: int, seed: int) -> pa.Table:
    """So many rows, drawn."""
    rows = np.random.default_rng(seed).permutation(len(table))[:n]
    return table.take(pa.array(np.sort(rows)))


def measure_sentiment(scratch: Path, seed: int, texts: int) -> list[Figure]:
    """Mood by rating with macro F1, and ratings."""
    trial = Trial("sentiment", divided(clothing("mood"), seed), scratch, seed)
    f1 = {"choose": "f1"}
    plain = {"terms": WORDS, "thresholds": LIKELIEST}
    trial.fit("plain", "tfidf_classifier", plain)
    trial.fit("balanced", "tfidf_classifier", {**plain, "class_weight": "balanced"})
    trial.fit("tfidf", "tfidf_classifier", {"thresholds": f1})
    trial.fit("nb", "tfidf_classifier", {"weighting": "nb", "costs": [0.3, 1, 3], "thresholds": f1})
    fewer = some(trial.tables["train"], texts, seed)
    settings = minilm(80, layers=2, epochs=1.0, rate=3e-4)
    trial.fit("transformer", "text_classifier", {**settings, "thresholds": f1}, fewer)
    trial.blend("tfidf", "nb", "transformer", thresholds=f1)
    ours = trial.chosen("plain")
    draws, mine = trial.bootstrap(), trial.judged(ours)
    split = f"{len(trial.tables['train']):,} training, {len(mine.truth):,} test texts"
    note = f"{ours}, chosen on validation (MiniLM fine-tuned on {texts:,}); {split}"
    figures = [
        told("sentiment_macro_f1", mine.macro_f1(draws), "macro F1", note, "> baseline"),
    ]
    for name, model, reference in (
        ("baseline", "plain", "TF-IDF of words 1–2, logistic regression, likeliest label"),
        ("balanced", "balanced", "the baseline with labels weighing the same"),
        ("tfidf", "tfidf", "words and letters, thresholds by F1 on validation"),
        ("transformer", "transformer", "MiniLM alone, thresholds by F1 on validation"),
        ("blend", "blend", "linear models and MiniLM, thresholds by F1 on validation"),
    ):
        value = trial.judged(model).macro_f1(draws)
        figures.append(told(f"sentiment_macro_f1_{name}", value, "macro F1", reference))
    for name, model in (("", "plain"), ("_over_balanced", "balanced")):
        gain = mine.macro_f1_gain(trial.judged(model), draws)
        note = f"paired difference to {'the baseline' if not name else 'the balanced baseline'}"
        figures.append(told(f"sentiment_macro_f1_gain{name}", gain, "macro F1", note))
    figures += rating_figures(trial, draws, ours)
    figures += calibration_figures(trial, "sentiment", "transformer")
    figures += cost_figures(trial, "sentiment", ours)
    return figures


def rating_figures(trial: Trial, draws: Bootstrap, ours: str) -> list[Figure]:
    """Root mean squared error of ratings 1 to 5."""
    test, found = trial.tables["test"], []
    truth = test["rating"].to_numpy()
    for name, model, reference in (
        ("", ours, f"{ours}, chosen for its moods"),
        ("_baseline", "plain", "ridge regression over TF-IDF of words 1–2"),
    ):
        said = trial.predicted(model)["rating"].to_numpy()
        mean = draws.mean(squared_errors(said, truth))
        root = Interval(mean.value**0.5, mean.low**0.5, mean.high**0.5)
        found.append(told(f"sentiment_rmse{name}", root, "stars", reference))
    return found


def measure_recommended(scratch: Path, seed: int, texts: int) -> list[Figure]:
    """Whether a reviewed product is recommended."""
    trial = Trial("classify", divided(clothing("recommended"), seed), scratch, seed)
    trial.fit("plain", "tfidf_classifier", {"terms": WORDS, "thresholds": LIKELIEST})
    trial.fit("tfidf", "tfidf_classifier", {"thresholds": LIKELIEST})
    ratios = {"weighting": "nb", "costs": [0.3, 1.0, 3.0], "thresholds": LIKELIEST}
    trial.fit("nb", "tfidf_classifier", ratios)
    settings = minilm(80, layers=2, epochs=1.0, rate=3e-4)
    trial.fit("transformer", "text_classifier", settings, some(trial.tables["train"], texts, seed))
    trial.blend("tfidf", "nb", "transformer", thresholds=LIKELIEST)
    ours = trial.chosen("plain")
    what = f"{ours}, chosen on validation by macro F1 (MiniLM fine-tuned on {texts:,})"
    found = accuracy_figures(trial, "recommended", "plain", ours, what, "> baseline")
    draws, mine, plain = trial.bootstrap(), trial.judged(ours), trial.judged("plain")
    return [
        *found,
        told("recommended_macro_f1", mine.macro_f1(draws), "macro F1", ours, "> baseline"),
        told("recommended_macro_f1_baseline", plain.macro_f1(draws), "macro F1", "the baseline"),
        told("recommended_macro_f1_gain", mine.macro_f1_gain(plain, draws), "macro F1",
             "paired difference to the baseline"),
    ]  # fmt: skip


def measure_pseudo_labels(scratch: Path, _: int) -> list[Figure]:
    """Five in a hundred training labels known: what the rest gain as unlabelled texts."""
    figures = []
    for name, rows, task, settings in (
        ("chinese", chinese(), "sentiment", {"terms": [("characters", 1, 2)], "costs": [4.0]}),
        ("pricerunner", pricerunner(), "classify", {"terms": WORDS, "costs": [10.0]}),
    ):
        gains, alone, used = [], [], 0
        for seed in range(3):
            trial = Trial(task, divided(rows, 0), scratch, 0)
            train = trial.tables["train"]
            known = np.random.default_rng(seed).random(len(train)) < 0.05
            labels = train["label"].to_pylist()
            hidden = pa.array([a if k else None for a, k in zip(labels, known, strict=True)])
            trial.tables["train"] = train.set_column(2, "label", hidden)
            inner = {**settings, "thresholds": LIKELIEST}
            trial.fit("alone", "tfidf_classifier", inner)
            model = trial.fit("pseudo", "pseudo_labels", {
                "learner": "tfidf_classifier", "settings": inner, "confidence": 0.95})  # fmt: skip
            print(f"  {model.history}", flush=True)
            used += min(model.history, key=lambda entry: entry["loss"])["pseudo_labels"]
            alone.append(trial.judged("alone").right.mean())
            gains.append(trial.judged("pseudo").right.mean() - alone[-1])
        note = f"5% of {len(train):,} labels known; least and most of 3 draws"
        figures += [
            Figure(
                f"pseudo_labels_{name}_alone", float(np.mean(alone)), "accuracy", min(alone),
                max(alone), reference=note,
            ),
            Figure(
                f"pseudo_labels_{name}_gain", float(np.mean(gains)), "accuracy", min(gains),
                max(gains), reference=f"at confidence .95, {used / 3:,.0f} texts taken on average",
            ),
        ]  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts: dict[str, Callable[[Path, int], list[Figure]]] = {
        "sentiment": lambda *run: measure_sentiment(*run, arguments.texts),
        "recommended": lambda *run: measure_recommended(*run, arguments.texts),
        "chinese": measure_chinese,
        "pricerunner": measure_pricerunner,
        "pseudo_labels": measure_pseudo_labels,
    }
    parser.add_argument("part", nargs="?", choices=[*parts, "all"], default="all")
    parser.add_argument("--texts", type=int, default=4000, help="reviews that MiniLM learns from")
    parser.add_argument("--seeds", type=int, help="splits, each with its own seed")
    parser.add_argument("--rows", type=int, help="of each data set, drawn: to try it out")
    parser.add_argument("--dry", action="store_true", help="print figures, write nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    MOST[:] = [arguments.rows] if arguments.rows else []
    for name in parts if arguments.part == "all" else [arguments.part]:
        print(name, flush=True)
        began = time.monotonic()
        runs = []
        for seed in range(1 if name == "pseudo_labels" else arguments.seeds or SEEDS[name]):
            with tempfile.TemporaryDirectory() as scratch:
                runs.append(parts[name](Path(scratch), seed))
        if arguments.dry:
            shown(over_seeds(runs))
        else:
            write_text_result(over_seeds(runs), time.monotonic() - began, name)


if __name__ == "__main__":
    main()

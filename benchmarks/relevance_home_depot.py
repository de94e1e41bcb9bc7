"""Home Depot: relevance of products to unseen queries, from titles alone.

Queries are cut into train, validation (early stopping, and which model is taken) and test.
Members are fitted on folds of the training queries; what they say of the fold they did not see is
a feature of the last trees.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.home_depot import Judge, Said, read
from benchmarks.kept import Kept, Outcome
from benchmarks.result import Figure
from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.learners.bi_encoder import BiEncoderLearner, BiEncoderSettings
from raysys.learners.cross_encoder import CrossEncoderLearner, CrossEncoderSettings
from raysys.learners.relevance_blend import fit_weights, folds_by_query
from raysys.learners.relevance_trees import RelevanceTreesLearner, RelevanceTreesSettings
from raysys.learners.text_protocol import TextContext
from raysys.text.encoder import Encoder
from raysys.text.models import PACKAGED
from raysys.text.pairs import Pairs
from raysys.text.relevance_features import PairFeatures

TREE_FOLDS = 4
CHUNK = 2000
SIMPLE = (
    "query_words", "item_words", "common_words", "coverage", "bm25", "letters_jaccard",
    "cosine_typed",
)  # fmt: skip
"""The seven features of the baseline."""
TREES = {"n_estimators": 800, "learning_rate": 0.03, "num_leaves": 31, "colsample": 0.3}


@dataclass(frozen=True)
class Reading:
    """A transformer and what it reads.

    Attributes:
        learner: by which it is fitted.
        typed: the learner's settings.
        settings: beside those that all have.
        right: it reads queries with their spelling put right.
        batch: pairs, or queries, of a step.
        head_rate: learning rate of its head.
    """

    learner: Any
    typed: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    right: bool = False
    batch: int = 32
    head_rate: float = 1e-3


_LISTS = {"loss": "listwise", "list_size": 8}
ENCODERS = {
    "cross_encoder": Reading(CrossEncoderLearner, CrossEncoderSettings),
    "cross_encoder_right": Reading(CrossEncoderLearner, CrossEncoderSettings, right=True),
    "cross_encoder_lists": Reading(
        CrossEncoderLearner, CrossEncoderSettings, _LISTS, right=True, batch=6
    ),
    "bi_encoder": Reading(BiEncoderLearner, BiEncoderSettings, batch=6, head_rate=1e-2),
}
USUAL = ("cross_encoder", "bi_encoder")


_shared: PairFeatures
"""For processes that are forked: it cannot be sent to others."""


def _columns(pairs: Pairs) -> np.ndarray:
    return _shared.of(pairs)


class HomeDepot:
    """All stages; each is kept."""

    def __init__(
        self, path: Path, kept: Kept, *, queries: int | None, workers: int, epochs: float,
        members: Sequence[str], taught: int | None = None, folds: int = 2, larger: int = 1,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.kept, self.workers, self.epochs, self.seed = kept, workers, epochs, seed
        self.members, self.taught = tuple(members), taught
        self.folds, self.larger = folds, larger
        self.about = {"queries": queries, "seed": seed}
        table = read(path, queries, seed)
        self.table = {
            name: table.filter(pc.equal(table["split"], name))
            for name in ("train", "validation", "test")
        }
        self.pairs = {name: Pairs.of(each) for name, each in self.table.items()}
        self.fold = folds_by_query(self.pairs["train"], folds, seed)
        self.tree_fold = folds_by_query(self.pairs["train"], TREE_FOLDS, seed + 1)
        self.encoded = 0
        self.seconds: dict[str, float] = {}
        self.rate: dict[str, float] = {}

    # ── features ─────────────────────────────────────────────────────────────────────────────

    def features(self) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """Names and columns of every split; texts of all titles are known, grades are not read."""
        catalogue = sorted({text for pairs in self.pairs.values() for text in pairs.items})
        vectors = self.vectors(catalogue)
        nothing = np.zeros(len(next(iter(vectors.values()))), dtype=np.float32)
        learned: list[PairFeatures] = []

        def encode(wanted: Sequence[str]) -> np.ndarray:
            return np.stack([vectors.get(text, nothing) for text in wanted])

        def learn() -> PairFeatures:
            if not learned:
                train = self.pairs["train"]
                learned.append(PairFeatures.learn(train, catalogue, encode=encode, seed=self.seed))
            return learned[0]

        columns, seconds, names = {}, 0.0, np.empty(0)
        for split, pairs in self.pairs.items():
            parts = []
            for at in range(0, len(pairs), 8 * CHUNK):
                rows = np.arange(at, min(at + 8 * CHUNK, len(pairs)))

                def run(
                    pairs: Pairs = pairs, rows: np.ndarray = rows
                ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
                    found = learn()
                    return {
                        "columns": self._in_parts(found, pairs.take(rows)),
                        "names": np.array(found.names),
                    }, {}

                outcome = self.kept.stage(f"features-{split}-{at:05d}", self.about, run)
                parts.append(outcome["columns"])
                seconds, names = seconds + outcome.seconds, outcome["names"]
            columns[split] = np.concatenate(parts)
        self.seconds["features"] = seconds
        self.rate["features"] = sum(map(len, columns.values())) / max(seconds, 1e-9)
        return tuple(str(name) for name in names), columns

    def _in_parts(self, features: PairFeatures, pairs: Pairs) -> np.ndarray:
        """Columns, by as many processes as may run; they share what was learned."""
        if self.workers == 1:
            return features.of(pairs)
        parts = [pairs.take(rows) for rows in np.array_split(np.arange(len(pairs)), self.workers)]
        global _shared
        _shared = features
        with ProcessPoolExecutor(self.workers, mp_context=get_context("fork")) as pool:
            return np.concatenate(list(pool.map(_columns, parts)))

    def vectors(self, catalogue: list[str]) -> dict[str, np.ndarray]:
        """Of titles and of queries, as typed and as put right, by the packaged MiniLM as it is."""
        words = PairFeatures.learn(self.pairs["train"], catalogue, factors=0, seed=self.seed)
        asked = [text for pairs in self.pairs.values() for text in pairs.queries]
        asked = sorted({*asked, *(words.query(text).line for text in asked)} - {""})
        return self._vectors(catalogue) | self._vectors(asked)

    def _vectors(self, texts: list[str]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        seconds = 0.0
        encoder: list[Encoder] = []
        for at in range(0, len(texts), CHUNK):
            few = texts[at : at + CHUNK]

            def run(few: list[str] = few) -> tuple[dict[str, np.ndarray], dict[str, float]]:
                if not encoder:
                    encoder.append(Encoder.open(PACKAGED, 48, 1))
                return {"vectors": encoder[0].encode(few).astype(np.float16)}, {}

            outcome = self.kept.stage(f"vectors-{at:06d}", few, run)
            seconds += outcome.seconds
            found |= dict(zip(few, outcome["vectors"].astype(np.float32), strict=True))
        self.seconds["vectors"] = self.seconds.get("vectors", 0.0) + seconds
        self.encoded += len(texts)
        self.rate["vectors"] = self.encoded / max(self.seconds["vectors"], 1e-9)
        return found

    def trees(
        self,
        name: str,
        columns: dict[str, np.ndarray],
        names: Sequence[str],
        **settings: object,
    ) -> Said:
        """Trees on given columns: out of fold on train, and the folds' mean elsewhere."""
        about = {**self.about, "names": list(names), **TREES, **settings}
        learner = RelevanceTreesLearner(RelevanceTreesSettings(**{**TREES, **settings}))
        train, held = self.pairs["train"], self.pairs["validation"]

        class Names:  # `fit_columns` reads no more of the features than their names
            pass

        features = Names()
        features.names = tuple(names)  # type: ignore[attr-defined]

        def run() -> tuple[dict[str, np.ndarray], dict[str, float]]:
            said = {"train": np.empty(len(train), np.float32)}
            for split in ("validation", "test"):
                said[split] = np.zeros(len(self.pairs[split]), np.float32)
            for number in range(TREE_FOLDS):
                inside, outside = self.tree_fold != number, self.tree_fold == number
                model = learner.fit_columns(
                    features, train.take(np.flatnonzero(inside)), columns["train"][inside],
                    held, columns["validation"], self.seed,
                )  # type: ignore[arg-type]  # fmt: skip
                said["train"][outside] = model.grades(columns["train"][outside])
                for split in ("validation", "test"):
                    said[split] += model.grades(columns[split]) / TREE_FOLDS
            return said, {"pairs": float(len(train) * (TREE_FOLDS - 1))}

        outcome = self.kept.stage(name, about, run)
        self._took(name, outcome, outcome.told["pairs"])
        return Said(outcome["train"], outcome["validation"], outcome["test"])

    # ── transformers ─────────────────────────────────────────────────────────────────────────

    def encoders(self) -> dict[str, Said]:
        """Fine-tuned transformers: out of fold on train, and the folds' mean elsewhere."""
        jobs = [(name, number) for name in self.members for number in range(self.folds)]
        if self.workers > 1:
            # not forked: what has used a GPU cannot be
            with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) as pool:
                outcomes = list(pool.map(self._fold, jobs))
        else:
            outcomes = [self._fold(job) for job in jobs]
        each = range(0, len(jobs), self.folds)
        return {
            name: self._joined(name, outcomes[at : at + self.folds])
            for name, at in zip(self.members, each, strict=True)
        }

    def _joined(self, name: str, outcomes: Sequence[Outcome]) -> Said:
        train = np.empty(len(self.pairs["train"]), np.float32)
        for number, outcome in enumerate(outcomes):
            train[self.fold == number] = outcome["train"]
        self.seconds[name] = sum(outcome.seconds for outcome in outcomes)
        self.rate[name] = float(np.mean([each.told["examples_per_s"] for each in outcomes]))
        return Said(
            train,
            np.mean([outcome["validation"] for outcome in outcomes], axis=0),
            np.mean([outcome["test"] for outcome in outcomes], axis=0),
        )

    def _settings(self, reading: Reading) -> dict[str, Any]:
        # a step of more pairs goes further: rates by the root of how many more (Krizhevsky 2014)
        training = {
            "epochs": self.epochs,
            "learning_rate": 1e-4 * self.larger**0.5,
            "head_learning_rate": reading.head_rate * self.larger**0.5,
            "warm_up": 0.1,
            "batch_size": reading.batch * self.larger,
            "checkpoint_every": {"seconds": 90},
            "keep": "last",
            "evaluate_every": {"epochs": 1000},
        }
        return {"training": training, "max_tokens": 48, **reading.settings}

    def _read_by(self, reading: Reading) -> dict[str, pa.Table]:
        """The splits as a transformer reads them."""
        if not reading.right:
            return self.table
        lines: dict[str, str] = {}
        catalogue = sorted({text for pairs in self.pairs.values() for text in pairs.items})
        words = PairFeatures.learn(self.pairs["train"], catalogue, factors=0, seed=self.seed)
        for pairs in self.pairs.values():
            lines |= {text: words.query(text).line or text for text in pairs.queries}
        return {
            split: table.set_column(
                table.schema.get_field_index("query"), "query",
                pa.array([lines[text] for text in table["query"].to_pylist()]),
            )
            for split, table in self.table.items()
        }  # fmt: skip

    def _fold(self, job: tuple[str, int]) -> Outcome:
        """One model of a member, and what it says of everything it did not see."""
        name, number = job
        reading = ENCODERS[name]
        settings = self._settings(reading)
        about = {**self.about, **settings, "fold": [number, self.folds], "taught": self.taught,
                 "right": reading.right}  # fmt: skip
        learner, typed = reading.learner, reading.typed
        folder = self.kept.scratch(f"{name}-{number}", about)
        tables = self._read_by(reading)
        train = tables["train"]
        inside = np.flatnonzero(self.fold != number)
        if self.taught is not None and len(inside) > self.taught:  # whole queries of them
            share = self.taught / len(inside)
            drawn = np.random.default_rng(self.seed).random(len(self.pairs["train"].queries))
            inside = inside[drawn[self.pairs["train"].query[inside]] < share]

        def fit() -> tuple[dict[str, np.ndarray], dict[str, float]]:
            scratch = folder / "scratch"
            scratch.mkdir(parents=True, exist_ok=True)
            model = learner(typed(**settings)).fit(
                train.take(inside),
                tables["validation"].slice(0, 0),
                TextContext(scratch, seed=self.seed + number),
            )
            shutil.rmtree(folder / "model", ignore_errors=True)
            (folder / "model").mkdir()
            model.save(folder / "model")
            fitted = model.fitted
            told = {"examples_per_s": fitted.examples_per_s, "training_seconds": fitted.seconds}
            return {}, {**told, "pairs": len(inside)}

        outcome = self.kept.stage(f"{name}-{number}-fit", about, fit)
        model = learner.model_class.load(folder / "model")
        seconds = outcome.seconds
        found = {}
        outside = train.take(np.flatnonzero(self.fold == number))
        for split, table in {**tables, "train": outside}.items():
            parts = []
            for at in range(0, table.num_rows, CHUNK):
                few = table.slice(at, CHUNK)

                def say(few: pa.Table = few) -> tuple[dict[str, np.ndarray], dict[str, float]]:
                    return {"grade": model.predict(few)["grade"].to_numpy()}, {}

                part = self.kept.stage(f"{name}-{number}-{split}-{at:05d}", about, say)
                seconds += part.seconds
                parts.append(part["grade"])
            found[split] = np.concatenate(parts)
        return Outcome(found, seconds, outcome.told)

    def _took(self, name: str, outcome: Outcome, examples: float) -> None:
        self.seconds[name] = outcome.seconds
        self.rate[name] = examples / max(outcome.seconds, 1e-9)

    # ── all together ─────────────────────────────────────────────────────────────────────────

    def candidates(self) -> dict[str, Said]:
        """Every model's grades, simple ones first."""
        names, columns = self.features()
        at = [names.index(name) for name in SIMPLE]
        simple = {split: each[:, at] for split, each in columns.items()}
        cosine = names.index("cosine_typed")
        said = {
            "minilm": Said(*(columns[split][:, cosine] for split in self.pairs)),
            "simple_trees": self.trees("simple_trees", simple, SIMPLE),
            "trees": self.trees("trees", columns, names),
            "trees_ranking": self.trees("trees_ranking", columns, names, objective="lambdarank"),
        }
        members = self.encoders()
        said |= members
        if members:
            wide = {
                split: np.concatenate(
                    [columns[split], *(getattr(each, split)[:, None] for each in members.values())],
                    axis=1,
                )
                for split in self.pairs
            }
            said["blend_trees"] = self.trees("blend_trees", wide, (*names, *members))
        stacked = [name for name in said if name not in ("minilm", "simple_trees")]
        said["blend"] = self._blend([said[name] for name in stacked])
        return said

    def _blend(self, members: Sequence[Said]) -> Said:
        """Non-negative weights, fitted on what was said out of fold."""
        train = self.pairs["train"]
        out_of_fold = np.stack([each.train for each in members])
        weights = fit_weights(out_of_fold, train.grade, train.weight, ridge=1e-3, non_negative=True)

        def joined(split: str) -> np.ndarray:
            rows = np.stack([getattr(each, split) for each in members])
            return (rows.T @ weights[:-1] + weights[-1]).clip(1, 3)

        return Said(joined("train"), joined("validation"), joined("test"))

    def figures(self) -> list[Figure]:
        """Test figures of what is best on validation queries, beside the baselines'."""
        said = self.candidates()
        held, test = Judge(self.pairs["validation"]), Judge(self.pairs["test"])
        draws = Bootstrap(np.unique(self.pairs["test"].query))
        for name, each in said.items():
            ndcg = [float(np.nanmean(j.ndcg(s))) for j, s in
                    ((held, each.validation), (test, each.test))]  # fmt: skip
            rmse = [held.rmse(each.validation), test.rmse(each.test)]
            print(
                f"{name:16s} NDCG@10 {ndcg[0]:.4f} {ndcg[1]:.4f}  RMSE {rmse[0]:.4f} {rmse[1]:.4f}"
            )
        ranks = max(said, key=lambda name: float(np.nanmean(held.ndcg(said[name].validation))))
        guesses = min(
            (name for name in said if name != "minilm"),
            key=lambda name: held.rmse(said[name].validation),
        )
        rows = []

        def add(name: str, found: Interval, unit: str, aim: str, reference: str) -> None:
            rows.append(Figure(f"home_depot_{name}", found.value, unit, found.low, found.high,
                               aim, reference))  # fmt: skip

        n = int((~np.isnan(test.ndcg(said["minilm"].test))).sum())
        fitted = f"fitted on {len(self.pairs['train'])} pairs"
        if self.about["queries"] is not None:
            fitted += f"; a sample of {self.about['queries']} queries"
        if ranks in ("minilm", "simple_trees") or guesses == "simple_trees":
            print("a simple baseline wins on validation, and is what is used")
        one, other = test.ndcg(said[ranks].test), test.ndcg(said["minilm"].test)
        add("ndcg10", draws.mean(one), "", "≥ .930", f"{ranks}; {n} unseen queries, {fitted}")
        add("ndcg10_baseline", draws.mean(other), "", "", "MiniLM zero-shot")
        add("ndcg10_gain", draws.difference(one, other), "", "> 0", "paired, drawn by query")
        one, other = said[guesses].test, said["simple_trees"].test
        pairs = len(self.pairs["test"])
        add(
            "rmse",
            test.rmse_of(one, None, draws),
            "",
            "≤ .450",
            f"{guesses}; {pairs} pairs, {fitted}",
        )
        add("rmse_baseline", test.rmse_of(other, None, draws), "", "", "LightGBM on 7 features")
        add("rmse_gain", test.rmse_of(one, other, draws), "", "> 0", "paired, drawn by query")
        for name, each in said.items():
            if name in (*ENCODERS, "trees", "trees_ranking", "simple_trees"):
                add(f"ndcg10_{name}", draws.mean(test.ndcg(each.test)), "", "", "alone")
                add(f"rmse_{name}", test.rmse_of(each.test, None, draws), "", "", "alone")
        for name, seconds in self.seconds.items():
            rows.append(Figure(f"home_depot_{name}_seconds", round(seconds, 1), "s"))
            what = "texts/s" if name == "vectors" else "pairs/s"
            rows.append(Figure(f"home_depot_{name}_rate", round(self.rate[name], 1), what))
        return rows

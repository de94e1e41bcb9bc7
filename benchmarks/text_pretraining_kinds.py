"""What the other kinds of pre-training gain: causal, sentence pairs, contrastive from behaviour.

Four to ten minutes a part on one core. A part alone with
its name: causal, titles, queries, behaviour. Needs the data that RAYSYS_DATA names.

Each is the same fine-tuning with and without, judged on the same test texts or queries. causal: a
new GPT on Chinese reviews. titles: next-sentence prediction over titles and descriptions of Icecat.
queries: the same over queries and what was clicked for them, from a log made of Home Depot's
judgements (see `text_weak`). behaviour: those pairs brought together by the contrastive loss.
No judgement, no review and no query of the test is pre-trained on (titles and descriptions of
products are, as a shop has them all), and nothing is chosen on test texts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.result import Figure
from benchmarks.text_data import chinese, data_folder, divided
from benchmarks.text_pretraining import (
    SEED,
    Learned,
    accuracies,
    learn,
    pairs_of,
    products,
    right,
    sample,
)
from benchmarks.text_queries import (
    add_options,
    brief,
    gain_figures,
    home_depot,
    judge_of,
    said,
    shown,
)
from benchmarks.text_results import write_text_result
from benchmarks.text_weak import simulated
from raysys.text.models import PACKAGED, open_model
from raysys.text.pretraining import (
    CausalObjective,
    CausalSettings,
    ContrastiveObjective,
    ContrastiveSettings,
    Pairs,
    PairSettings,
    PairsObjective,
    PairsSettings,
    tokenise,
)
from raysys.text.pretraining.behaviour import NONE
from raysys.text.pretraining.causal import MARKS
from raysys.text.pretraining.corpus import is_held_out, text_hashes
from raysys.text.scratch import ScratchSettings, make_model
from raysys.text.training import TrainingSettings

SEEDS = 2
"""Of fine-tuning on judged queries."""
JUDGED = 100
"""Training queries of Home Depot that have judges; the log is of the others."""
LISTS = 20_000
"""In that log."""
HELD_OUT = 0.05


def training(asked: argparse.Namespace, steps: int, **more: Any) -> TrainingSettings:
    """So many steps, of which the last is judged."""
    most = min(steps, asked.steps or steps)
    return TrainingSettings(max_steps=most, checkpoint_every=None, **more)


def measure_causal(scratch: Path, asked: argparse.Namespace) -> list[Figure]:
    """A new small GPT on Chinese reviews, 1,000 of them with labels."""
    tables = divided(chinese(), SEED)
    texts = sample(tables["train"], asked.texts, SEED)["text"].to_pylist()
    tables["test"] = sample(tables["test"], min(2000, asked.texts), SEED)
    tables["validation"] = sample(tables["validation"], 300, SEED)
    shape = ScratchSettings(
        architecture="gpt2", layers=2, width=128, heads=4, vocabulary=6000, max_tokens=64
    )
    made = make_model(shape, texts, SEED, scratch / "new")
    _, tokenizer = open_model(str(made.folder), where="benchmark")
    held = is_held_out(text_hashes(texts), HELD_OUT)
    parts = [
        tokenise(
            [[text for text, out in zip(texts, held, strict=True) if out == wanted]],
            *(tokenizer, scratch / name),
            longest=64 - MARKS,
        )
        for name, wanted in (("train", False), ("held_out", True))
    ]
    told = training(asked, 500, batch_size=32, learning_rate=1e-3)
    settings = CausalSettings(block=64, judge_on=300, training=told)
    objective = CausalObjective(str(made.folder), *parts, settings, SEED)
    learned = learn(objective, told, scratch / "causal")
    tuning = brief(
        {
            "max_tokens": 64,
            "training": {
                "epochs": 5,
                "batch_size": 16,
                "learning_rate": 3e-4,
                "keep": "best",
                "label_smoothing": 0.0,
            },
        },
        asked.steps,
    )

    def fit(learner: str, given: dict[str, Any]) -> np.ndarray:
        return right(
            *(learner, "sentiment", given, tables),
            lambda seed: sample(tables["train"], 1000, seed), scratch,
        )  # fmt: skip

    what = (
        f"a new GPT, {made.parameters / 1e6:.1f}M weights, pre-trained on {len(texts):,} reviews "
        "without labels, fine-tuned on 1,000"
    )
    return [
        *accuracies(
            *("pretraining_causal", what),
            fit("text_classifier", {**tuning, "model": str(learned.folder)}),
            fit("text_classifier", {**tuning, "model": str(made.folder)}),
            fit("tfidf_classifier", {}),
        ),
        learned.figure("pretraining_causal_perplexity", "perplexity", "of a token"),
        learned.speed("pretraining_causal_speed"),
    ]


# ── sentence pairs, judged on queries ────────────────────────────────────────────────────────


def next_sentence(pairs: Pairs, source: str, scratch: Path, asked: argparse.Namespace) -> Learned:
    """MiniLM tells pairs that belong together from others, and guesses hidden words."""
    told = training(asked, 100, batch_size=16, learning_rate=5e-5, warm_up=0.1)
    settings = PairsSettings(
        pairs=PairSettings(sources=(source,)), max_tokens=64, judge_on=200, training=told
    )
    _, tokenizer = open_model(PACKAGED, where="benchmark")
    tokens = tokenise([pairs.texts], tokenizer, scratch / "pairs", longest=64, pieces=False)
    return learn(PairsObjective(PACKAGED, pairs, tokens, settings, SEED), told, scratch / "learned")


READER = {
    "training": {"epochs": 3, "batch_size": 32, "learning_rate": 1e-4,
                 "head_learning_rate": 1e-3, "warm_up": 0.1},
}  # fmt: skip
TOWERS = {
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-4,
                 "head_learning_rate": 1e-2, "warm_up": 0.1},
}  # fmt: skip


def icecat_pairs(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Judgements of Icecat as `schema.LABELLED_PAIRS`; `split` stays open."""
    place = data_folder() / "search" / "icecat_judgements.csv"
    titles = {row["id"]: row["title"] for row in rows if row["title"]}
    judged = pl.read_csv(place, schema_overrides={"docid": pl.String})
    return judged.filter(pl.col("docid").is_in(list(titles))).select(
        "query",
        item_id="docid",
        text=pl.col("docid").replace_strict(titles),
        grade=pl.col("rating").cast(pl.Float32),
        weight=pl.lit(1.0, dtype=pl.Float32),
        split=pl.lit("train"),
    )


def measure_titles(scratch: Path, asked: argparse.Namespace) -> list[Figure]:
    """Titles and descriptions, then half of Icecat's judged queries, judged on the other half."""
    rows = products()
    learned = next_sentence(pairs_of(rows), "titles", scratch, asked)
    judged = icecat_pairs(rows)
    names = judged["query"].unique().sort().to_list()
    order = np.random.default_rng(SEED).permutation(len(names))
    halves = [{names[at] for at in order[side::2]} for side in (0, 1)]
    parts = []
    for half in halves:
        mine, rest = (
            judged.filter(pl.col("query").is_in(list(some)))
            for some in (half, set(names) - half)
        )  # fmt: skip
        held = sorted(set(rest["query"]))[::8]  # a few queries of the other half to stop by
        known = pl.col("query").is_in(held)
        parts.append((rest.filter(~known), rest.filter(known), mine))
    judge = judge_of(pl.concat([mine for _, _, mine in parts]), least_grade=0.0)

    def grades(model: str, seed: int) -> pa.Table:
        settings = {**brief(READER, asked.steps), "model": model}
        return pa.concat_tables([said("cross_encoder", settings, each, seed) for each in parts])

    runs = [
        (grades(str(learned.folder), seed), grades(PACKAGED, seed)) for seed in range(asked.seeds)
    ]
    what = f"a cross-encoder of half of Icecat's {len(names)} queries, judged on the other half"
    return told("pretraining_pairs_titles", judge, runs, learned, what)


def clicked(rest: pl.DataFrame, lists: int) -> Pairs:
    """Queries and the titles that were clicked for them twice or more, of a log made of pairs."""
    log = pl.DataFrame(simulated(rest, lists, np.random.default_rng(SEED)))
    asked = log.filter(pl.col("event_type") == "impression").unique("request_id")
    often = (
        log.filter(pl.col("event_type") == "click")
        .drop("query")
        .join(asked.select("request_id", "query"), on="request_id")
        .group_by("query", "item_id")
        .agg(pl.len().alias("n"))
        .filter(pl.col("n") >= 2)
        .sort("n", "query", "item_id", descending=[True, False, False])
    )
    items = rest.unique("item_id", keep="first", maintain_order=True)
    number = {item: at for at, item in enumerate(items["item_id"])}
    title = dict(items.select("item_id", "text").rows())
    found = [
        ("queries", query, title[item], NONE, number[item], NONE)
        for query, item in often.select("query", "item_id").iter_rows()
    ]
    return Pairs.of(found, HELD_OUT)


def measure_log(scratch: Path, asked: argparse.Namespace, kind: str) -> list[Figure]:
    """Pre-training on a log of unjudged queries, then fine-tuning on a few judged ones."""
    splits = home_depot(asked.queries, SEED)
    train = splits["train"]
    names = train["query"].unique().sort().to_list()
    order = np.random.default_rng(SEED).permutation(len(names))
    judged = {names[at] for at in order[: min(JUDGED, len(names) // 2)]}
    few = train.filter(pl.col("query").is_in(list(judged)))
    pairs = clicked(train.filter(~pl.col("query").is_in(list(judged))), asked.lists)
    print(f"  {pairs.counts()}", flush=True)
    if kind == "queries":
        learner, tuning = "cross_encoder", READER
        learned = next_sentence(pairs, "queries", scratch, asked)
    else:
        learner, tuning = "bi_encoder", TOWERS
        learned = together(pairs, scratch, asked)
    parts = few, splits["validation"], splits["test"]
    settings = brief(tuning, asked.steps)
    runs = [
        (
            said(learner, {**settings, "model": str(learned.folder)}, parts, seed),
            said(learner, {**settings, "model": PACKAGED}, parts, seed),
        )
        for seed in range(asked.seeds)
    ]
    what = f"{learner} of {len(judged):,} judged queries, test of {asked.queries // 5:,}"
    prefix = {"queries": "pretraining_pairs_queries", "behaviour": "pretraining_behaviour"}[kind]
    return told(prefix, judge_of(splits["test"]), runs, learned, what)


def together(pairs: Pairs, scratch: Path, asked: argparse.Namespace) -> Learned:
    """MiniLM brings queries and what was clicked for them together."""
    steps = training(asked, 100, batch_size=32, learning_rate=3e-5, warm_up=0.1)
    settings = ContrastiveSettings(
        pairs=PairSettings(sources=("queries",)), max_tokens=32, judge_on=100, judge_among=500,
        hard_negatives={"count": 0}, training=steps,
    )  # fmt: skip
    _, tokenizer = open_model(PACKAGED, where="benchmark")
    tokens = tokenise([pairs.texts], tokenizer, scratch / "pairs", longest=32, pieces=False)
    objective = ContrastiveObjective(PACKAGED, pairs, tokens, settings, SEED)
    return learn(objective, steps, scratch / "learned")


def told(
    prefix: str, judge: Any, runs: list[tuple[pa.Table, pa.Table]], learned: Learned, what: str
) -> list[Figure]:
    """The gain, and how the pre-training went."""
    found = gain_figures(prefix, judge, runs, (f"{what}; pre-trained MiniLM", "MiniLM as it comes"))
    for of, unit in (("accuracy", "accuracy"), ("recall_at_10", "recall@10")):
        if of in learned.fitted.figures:  # none where no pair is held out, of a very small log
            found.append(learned.figure(f"{prefix}_told_apart", of, f"{unit} of held-out pairs"))
    return [*found, learned.speed(f"{prefix}_speed")]


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Figure]]] = {
    "causal": measure_causal,
    "titles": measure_titles,
    "queries": lambda scratch, asked: measure_log(scratch, asked, "queries"),
    "behaviour": lambda scratch, asked: measure_log(scratch, asked, "behaviour"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--queries", type=int, default=1500, help="of Home Depot, in all")
    parser.add_argument("--lists", type=int, default=LISTS, help="in the log made of them")
    parser.add_argument("--texts", type=int, default=16_000, help="reviews that GPT reads")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of fine-tuning on queries")
    add_options(parser)
    asked = parser.parse_args()
    wanted: Iterable[str] = asked.parts or PARTS
    for name in wanted:
        if name not in PARTS:
            raise SystemExit(f"no part {name!r}: choose among {', '.join(PARTS)}")
    for name in wanted:
        print(name, flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            figures = PARTS[name](Path(scratch), asked)
        if asked.dry:
            shown(figures)
        else:
            write_text_result(figures, time.monotonic() - started, part=name)


if __name__ == "__main__":
    main()

"""One ranking out of many of the next item: candidates of all members, weighed or stacked.

Every member ranks all items; what can win is in somebody's first places, so the union of those is
ranked again. Scores are logarithms of a member's share, so a weighted sum is a product of experts
(Hinton, 2002). Four methods compete on validation, each fitted on one half of the cases and
judged on the other: the best member alone, greedy weights, listwise weights, and LambdaMART
(Burges, 2010) over scores, ranks and a few plain facts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ensemble.average import select
from raysys.ensemble.ranking import Judgements
from raysys.ensemble.stack import fit_listwise
from raysys.learners.full_ranking import NOWHERE, survey
from raysys.learners.sequence_protocol import SequenceModel, Sequences, batches

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

FLOOR = 1e-6  # of a share: what a member that says nothing of an item says
PLAIN = ("popularity", "recent_popularity", "trend", "age_in_prefix", "times_in_prefix",
         "prefix_length", "last_popularity", "kinship")  # fmt: skip
METHODS = ("single", "average", "listwise", "trees")
STOPS = 0.2
"""Share of the fitted cases that trees do not see, and stop by."""


def log_shares(chosen: Float32, first: Float32, total: Float32, scale: str) -> Float32:
    """What part of the whole some items of a prefix get, as a logarithm: float32[n].

    Args:
        chosen: float32[n], their scores.
        first: float32[k], the member's best scores, which stand for the whole of a softmax.
        total: the sum of all scores.
        scale: `log`: scores are logarithms up to a constant; `share`: they are weights from 0 up.
    """
    if scale == "log":
        top = first.max()
        return chosen - (top + np.log(np.exp(first - top).sum()))
    found: Float32 = np.log(chosen / max(float(total), 1e-30) + np.float32(FLOOR))
    return found


@dataclass(frozen=True)
class PlainFacts:
    """What is known of items without any member.

    Attributes:
        popularity: float32[n_items], logarithm of how often it was taken; recent: lately.
        attributes: float32[n_items, a] of unit rows, dense or sparse; None: none are known.
    """

    popularity: Float32
    recent: Float32
    attributes: Any = None

    def of(self, prefix: Int32, items: Int32) -> Float32:
        """Facts of candidates after a prefix: float32[n, len(PLAIN)]."""
        found = np.zeros((len(items), len(PLAIN)), dtype=np.float32)
        found[:, 0] = self.popularity[items]
        found[:, 1] = self.recent[items]
        found[:, 2] = self.recent[items] - self.popularity[items]
        at = prefix[None, ::-1] == items[:, None]
        within = at.any(axis=1) if len(prefix) else np.zeros(len(items), dtype=bool)
        if len(prefix):
            found[:, 3] = np.where(within, at.argmax(axis=1) + 1, 0)
            found[:, 4] = at.sum(axis=1)
            found[:, 6] = self.popularity[prefix[-1]]
        found[:, 5] = len(prefix)
        if self.attributes is not None and len(prefix):
            last = self.attributes[prefix[-3:]].mean(axis=0)
            found[:, 7] = np.asarray(self.attributes[items] @ np.asarray(last).ravel()).ravel()
        return found


@dataclass(frozen=True)
class Candidates:
    """The union of the members' first places after each of r prefixes, n rows in all.

    Attributes:
        item: int32[n].
        offsets: int64[r + 1].
        shares: float32[m, n], logarithms of shares, see `log_shares`.
        ranks: float32[m, n], 1 is a member's best among these candidates.
        plain: float32[n, len(PLAIN)].
        label: float32[n], 1 for what came next; all 0 where it is unknown or nobody's candidate.
    """

    item: Int32
    offsets: Int64
    shares: Float32
    ranks: Float32
    plain: Float32
    label: Float32

    def take(self, which: Int64) -> Candidates:
        """The candidates of some prefixes."""
        sizes = np.diff(self.offsets)[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.repeat(self.offsets[which] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Candidates(
            self.item[rows], offsets, self.shares[:, rows], self.ranks[:, rows],
            self.plain[rows], self.label[rows],
        )  # fmt: skip

    @property
    def judgements(self) -> Judgements:
        """For fitting weights: one item is relevant after each prefix."""
        ones = np.ones(len(self.offsets) - 1, dtype=np.int32)
        return Judgements(self.item, self.label, self.offsets, ones)

    @property
    def inputs(self) -> Float32:
        """What trees read: float32[n, 3 m + len(PLAIN)]."""
        lead = self.shares - _by_request(np.maximum, self.shares, self.offsets)
        parts = [self.shares.T, lead.T, np.log(self.ranks).T, self.plain]
        return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _by_request(reduce: np.ufunc, values: Float32, offsets: Int64) -> Float32:
    """Each row's reduction over its request: float32[m, n]."""
    reduced = reduce.reduceat(values, offsets[:-1], axis=1)
    return np.repeat(reduced, np.diff(offsets), axis=1)


def collect(
    models: Mapping[str, SequenceModel],
    prefixes: Sequences,
    facts: PlainFacts,
    targets: Int32,
    *,
    top: int,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Candidates, dict[str, Int64]]:
    """Candidates of all members, and where each member alone ranks the target among all items.

    Args:
        models: the members; all rank the same items.
        prefixes: at least one; no prefix may be without a candidate, so `top` is 1 or more.
        facts: of the items.
        targets: int32[r], what came next; -1: unknown, its rank is the number of items + 1.
        top: first places of each member that are candidates.
        advance: told how many prefixes are done.
    """
    n_items = next(iter(models.values())).n_items
    parts: list[tuple[list[Int32], list[Float32], list[Float32]]] = []
    alone = {name: np.full(len(prefixes), NOWHERE, dtype=np.int64) for name in models}
    for rows in batches(len(prefixes), n_items * max(1, len(models))):
        batch = prefixes.take(rows)
        views = []
        for name, model in models.items():
            dense = np.ascontiguousarray(model.score(batch))
            items, scores, alone[name][rows], total = survey(dense, targets[rows], top)
            views.append((dense, items, scores, total, model.scale))
        firsts = np.concatenate([view[1] for view in views], axis=1)
        union = [np.unique(each) for each in firsts]
        told = [
            np.stack([log_shares(d[i, items], s[i], t[i], scale) for d, _, s, t, scale in views])
            for i, items in enumerate(union)
        ]
        plain = [facts.of(batch[i], items) for i, items in enumerate(union)]
        parts.append((union, told, plain))
        advance(len(rows))
    item = [each for part in parts for each in part[0]]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in item])]).astype(np.int64)
    flat = np.concatenate(item).astype(np.int32)
    shares_ = np.concatenate([each for part in parts for each in part[1]], axis=1)
    plain_ = np.concatenate([each for part in parts for each in part[2]])
    label = (flat == np.repeat(targets, np.diff(offsets))).astype(np.float32)
    ranks = np.stack([_places(row, flat, offsets) for row in shares_])
    return Candidates(flat, offsets, shares_.astype(np.float32), ranks, plain_, label), alone


def _places(scores: Float32, items: Int32, offsets: Int64) -> Float32:
    """Ranks within each request, 1 is best, ties by number: float32[n]."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((items, -scores, owner))
    place = np.empty(len(scores), dtype=np.float32)
    place[order] = np.arange(len(scores)) - offsets[owner[order]] + 1
    return place


def target_ranks(scores: Float32, candidates: Candidates) -> Int64:
    """Where the target stands by the ensemble's scores: int64[r]; `NOWHERE` if no candidate."""
    found = np.full(len(candidates.offsets) - 1, NOWHERE, dtype=np.int64)
    judged = candidates.judgements
    found[judged.owner] = judged.ranks(scores)
    return found


@dataclass(frozen=True)
class NextItemEnsemble:
    """What joins the members' scores.

    Attributes:
        members: their names, in the order of `Candidates.shares`.
        method: one of `METHODS`.
        weights: float64[m], of the logarithms of shares; for trees, of their starting score.
        trees: LightGBM's model as text, for trees.
        figures: what each method reached on cases it was not fitted on.
    """

    members: tuple[str, ...]
    method: str
    weights: Float64
    trees: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def score(self, candidates: Candidates) -> Float32:
        """Scores of all candidates: float32[n]."""
        linear = self.weights.astype(np.float32) @ candidates.shares
        if self.method != "trees":
            return linear
        import lightgbm as lgb

        booster = lgb.Booster(model_str=self.trees)
        raised = booster.predict(candidates.inputs, raw_score=True, num_threads=0)
        return (linear + raised).astype(np.float32)


@dataclass(frozen=True)
class StackSettings:
    """How the ensemble is fitted.

    Attributes:
        k: of the measure by which methods compete: reciprocal rank and hits within k places.
        rounds: of greedy selection.
        leaves, learning_rate, trees: of LambdaMART, at most.
        seed: of the halves and the trees.
        deadline: of `time.monotonic()`; trees stop growing there.
    """

    k: int = 20
    rounds: int = 20
    leaves: int = 15
    learning_rate: float = 0.06
    trees: int = 300
    seed: int = 0
    deadline: float = float("inf")


def fit_next_item(
    members: Sequence[str],
    candidates: Candidates,
    group: Int64,
    quality: Callable[[Int64], Float64],
    settings: StackSettings,
) -> NextItemEnsemble:
    """The method that does best on halves that it was not fitted on, fitted on all cases.

    Args:
        members: names, in the order of `candidates.shares`.
        candidates: of the validation cases.
        group: int64[r], cases of one session or user stay in one half.
        quality: of ranks int64[r], by case, higher is better: float64[r].
        settings: see `StackSettings`.
    """
    groups = int(group.max()) + 1
    side = (np.random.default_rng(settings.seed).permutation(groups) % 2)[group]
    stops = (np.random.default_rng([settings.seed, 1]).random(groups) < STOPS)[group]
    started = time.monotonic()
    budget = (settings.deadline - started) / 4  # two halves, all cases (twice the work)
    values: dict[str, list[Float64]] = {}
    rounds = []
    for held in (0, 1):
        fitted = candidates.take(np.flatnonzero(side != held))
        judged = candidates.take(np.flatnonzero(side == held))
        if not fitted.label.any() or not judged.label.any():
            continue
        end = time.monotonic() + budget
        late = stops[side != held]
        for method, ensemble in _fit_all(members, fitted, late, settings, end).items():
            found = quality(target_ranks(ensemble.score(judged), judged))
            values.setdefault(method, []).append(found)
            if method == "trees":
                rounds.append(ensemble.figures["trees"])
    both = max(map(len, values.values()), default=0)  # trees may lack cases to stop by in one half
    figures = {
        name: float(np.concatenate(found).mean())
        for name, found in values.items()
        if len(found) == both
    }
    if not figures:  # too few cases to halve
        return NextItemEnsemble(tuple(members), "average", np.full(len(members), 1 / len(members)))
    method = max(figures, key=lambda name: figures[name])
    ensemble = _fit(members, candidates, method, settings, int(np.mean(rounds or [0])))
    return NextItemEnsemble(ensemble.members, method, ensemble.weights, ensemble.trees, figures)


def _fit_all(
    members: Sequence[str],
    fitted: Candidates,
    late: npt.NDArray[np.bool_],
    settings: StackSettings,
    deadline: float,
) -> dict[str, NextItemEnsemble]:
    """Every method; trees stop where the cases of bool[r] `late`, which they do not see, say."""
    found = {m: _fit(members, fitted, m, settings) for m in ("single", "average", "listwise")}
    seen, unseen = (fitted.take(np.flatnonzero(which)) for which in (~late, late))
    if not (seen.label.any() and unseen.label.any()):
        return found
    trees, n = _trees(seen, found["listwise"].weights, settings, unseen, deadline)
    weights = found["listwise"].weights
    found["trees"] = NextItemEnsemble(tuple(members), "trees", weights, trees, {"trees": n})
    return found


def _fit(
    members: Sequence[str],
    candidates: Candidates,
    method: str,
    settings: StackSettings,
    trees: int = 0,
) -> NextItemEnsemble:
    if method in ("single", "average"):
        rounds = 1 if method == "single" else settings.rounds
        weights = select(candidates.shares, candidates.judgements, rounds=rounds, k=settings.k)
    else:
        weights = fit_listwise(candidates.shares, candidates.judgements)
    grown = ""
    if method == "trees":
        grown, _ = _trees(candidates, weights, settings, None, settings.deadline, trees)
    return NextItemEnsemble(tuple(members), method, weights, grown)


def _trees(
    fitted: Candidates,
    weights: Float64,
    settings: StackSettings,
    unseen: Candidates | None,
    deadline: float,
    trees: int = 0,
) -> tuple[str, int]:
    """LambdaMART that goes on from the listwise score: its text and how many trees it has.

    With `unseen` it stops when cases not fitted on get no better; without, after `trees`.
    """
    import lightgbm as lgb

    hit = np.flatnonzero(np.add.reduceat(fitted.label, fitted.offsets[:-1]) > 0)
    fitted = fitted.take(hit)  # cases without the target among the candidates teach nothing

    def dataset(rows: Candidates, reference: Any = None) -> Any:
        start = weights.astype(np.float32) @ rows.shares
        return lgb.Dataset(
            rows.inputs, rows.label, group=np.diff(rows.offsets), init_score=start,
            reference=reference, free_raw_data=True,
        )  # fmt: skip

    def clock(environment: Any) -> None:
        if time.monotonic() > deadline:
            raise lgb.callback.EarlyStopException(environment.iteration, [])

    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [settings.k],
        "lambdarank_truncation_level": settings.k + 10,
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": 200,
        "feature_fraction": 0.6,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "max_bin": 127,
        "seed": settings.seed,
        "deterministic": True,
        "verbosity": -1,
    }
    train = dataset(fitted)
    calls = [clock]
    sets = []
    if unseen is not None:
        sets = [dataset(unseen, train)]
        calls.append(lgb.early_stopping(30, verbose=False))
    n = settings.trees if unseen is not None else max(trees, 1)
    booster = lgb.train(parameters, train, n, valid_sets=sets, callbacks=calls)
    grown = booster.best_iteration or booster.current_iteration()
    return booster.model_to_string(num_iteration=grown), max(int(grown), 1)

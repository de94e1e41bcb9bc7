"""Position bias on simulated clicks: how well it is estimated, and what undoing it gains a ranking.

Under 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.result import ROOT, Figure, write_result
from raysys.features.position_bias import (
    PositionBiasSettings,
    Propensities,
    estimate_propensities,
    inverse_propensity_weights,
)
from raysys.features.simulate import SimulationSettings, simulate_log, simulate_shop
from raysys.learners.lightgbm_ranker import LightGBMRanker, LightGBMSettings
from raysys.learners.shown import one_list_a_click
from raysys.learners.trees import Machine
from raysys.learners.validation import NDCG
from raysys.learners.xgboost_ranker import XGBoostRanker, XGBoostSettings

MODELS = ("pbm", "cascade")
METHODS = ("all_pairs", "adjacent", "em", "regression_em")
TREES = {"candidates": 0, "n_estimators": 60, "learning_rate": 0.12, "early_stopping_rounds": 0}


@dataclass
class Run:
    """One click model, one seed."""

    truth: np.ndarray
    rate: np.ndarray  # click rate by position, in parts of the first
    estimates: dict[str, Propensities]
    ndcg: dict[str, float]


def simulate(job: tuple[str, int, int, int]) -> Run:
    model, seed, queries, requests = job
    how = SimulationSettings(queries=2 * queries, requests=requests, click_model=model)
    both = simulate_shop(how, seed)
    shop, fresh = both.queries(0, queries), both.queries(queries, 2 * queries).batch()
    log = simulate_log(shop, how, seed)
    features = shop.features[log.query, log.item]
    estimates = {
        method: estimate_propensities(
            *(log.query, log.item, log.position, log.click),
            PositionBiasSettings(
                method=method, resamples=200 if method == "all_pairs" else 0, iterations=500
            ),
            features=features if method == "regression_em" else None,
        )
        for method in METHODS
    }
    found = estimates["all_pairs"]
    clicks, judge = log.batch(shop), NDCG(fresh)
    weighted = one_list_a_click(clicks, inverse_propensity_weights(log.position, found))
    hidden = {"exclude": ("position",)}
    fits = {
        "xgboost_naive": (XGBoostRanker, XGBoostSettings, clicks, hidden),
        "xgboost_ips": (XGBoostRanker, XGBoostSettings, weighted, hidden),
        "xgboost_unbiased": (XGBoostRanker, XGBoostSettings, clicks, {"unbiased": True}),
        "xgboost_oracle": (XGBoostRanker, XGBoostSettings, shop.batch(), {}),
        "lightgbm_naive": (LightGBMRanker, LightGBMSettings, clicks, hidden),
        "lightgbm_ips": (LightGBMRanker, LightGBMSettings, weighted, hidden),
        "lightgbm_oracle": (LightGBMRanker, LightGBMSettings, shop.batch(), {}),
    }
    ndcg = {}
    for name, (learner, settings, rows, more) in fits.items():
        size = {"max_depth": 4} if learner is XGBoostRanker else {"num_leaves": 15}
        made = settings(**TREES, **size, **more)
        fitted = learner.train_booster(made, rows, None, seed=seed, machine=Machine(threads=1))
        ndcg[name] = judge(fitted.score(fresh))
    rate = found.clicks / found.impressions
    return Run(log.propensity / log.propensity[0], rate / rate[0], estimates, ndcg)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95% interval (Student's t)."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    width = error * float(stats.t.ppf(0.975, len(values) - 1))
    return mean, mean - width, mean + width


def figures(model: str, runs: list[Run]) -> Iterator[Figure]:
    reference = f"truth, mean over positions 2 to 10, {len(runs)} seeds"

    def error(value: np.ndarray, run: Run) -> float:
        return float(np.abs(value[1:] / run.truth[1:] - 1).mean())

    for method in METHODS:
        value, low, high = spread([error(run.estimates[method].value, run) for run in runs])
        aim = "≤ 0.15" if method == "all_pairs" else ""
        yield Figure(f"{model}_error_{method}", value, "", low, high, aim, reference)
    value, low, high = spread([error(run.rate, run) for run in runs])
    yield Figure(f"{model}_error_click_rate", value, "", low, high, reference=reference)
    found = [run.estimates["all_pairs"] for run in runs]
    held = [
        ((one.low <= run.truth) & (run.truth <= one.high))[1:]
        for one, run in zip(found, runs, strict=True)
    ]
    yield Figure(f"{model}_intervals_hold", float(np.mean(held)), "", aim="0.95",
                 reference="share of 95% intervals (all_pairs) with the truth in them")  # fmt: skip
    for at in range(1, len(found[0].value)):
        yield Figure(
            *(f"{model}_propensity_{at + 1}", float(found[0].value[at]), ""),
            *(float(found[0].low[at]), float(found[0].high[at])),
            reference=f"truth {runs[0].truth[at]:.3f}; click rate {runs[0].rate[at]:.3f}; seed 0",
        )
    for name in runs[0].ndcg:
        value, low, high = spread([run.ndcg[name] for run in runs])
        yield Figure(f"{model}_ndcg10_{name}", value, "", low, high, reference="true relevance")
    for name in ("xgboost_ips", "xgboost_unbiased", "lightgbm_ips"):
        naive = f"{name.split('_')[0]}_naive"
        value, low, high = spread([run.ndcg[name] - run.ndcg[naive] for run in runs])
        yield Figure(f"{model}_gain_{name}", value, "", low, high, "> 0", f"paired with {naive}")


def draw(runs: dict[str, list[Run]]) -> None:
    """The curves of the first seed, for the documentation."""
    import matplotlib.pyplot as plt

    from raysys.report import COLOURS, new_figure

    figure, axes = new_figure(9.0, 3.4)
    for at, (model, of) in enumerate(runs.items()):
        found, place = of[0].estimates["all_pairs"], np.arange(1, 11)
        axes.plot(place, found.value, "o-", ms=4, color=COLOURS[at], label=f"{model}: estimated")
        axes.fill_between(place, found.low, found.high, color=COLOURS[at], alpha=0.15, lw=0)
        axes.plot(place, of[0].truth, "--", lw=1, color=COLOURS[at], label=f"{model}: truth")
    axes.set(xlabel="position", ylabel="propensity", ylim=(0, None))
    axes.legend(frameon=False)
    path = ROOT / "docs" / "position_bias.svg"
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=400, help="to fit on, and to judge on")
    parser.add_argument("--requests", type=int, default=40, help="of each query, on average")
    arguments = parser.parse_args()
    started = time.monotonic()
    size = (arguments.queries, arguments.requests)
    jobs = [(model, seed, *size) for model in MODELS for seed in range(arguments.seeds)]
    with ProcessPoolExecutor(2) as pool:
        done = list(pool.map(simulate, jobs))
    runs = {
        model: [run for job, run in zip(jobs, done, strict=True) if job[0] == model]
        for model in MODELS
    }
    draw(runs)
    rows = [figure for model in MODELS for figure in figures(model, runs[model])]
    write_result("position_bias", rows, time.monotonic() - started)


if __name__ == "__main__":
    main()

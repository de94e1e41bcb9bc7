"""Experiments judged where the truth is known: false alarms, power, CUPED, off-policy values.

Under 5 minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from benchmarks.result import RESULTS, ROOT, Figure, write_result
from raysys.experiments.bandits import Thompson
from raysys.experiments.definition import Arm, Experiment
from raysys.experiments.interleaving import judge_interleaving
from raysys.experiments.logged import logged_rows, read_log
from raysys.experiments.off_policy import LoggedRows, OffPolicySettings, evaluate_policy
from raysys.experiments.planning import users_needed
from raysys.experiments.simulate import arriving, returning, with_covariate
from raysys.experiments.statistics import adjustment, difference, sample

ALPHA = 0.05
DATA = Path(os.environ.get("RAYSYS_DATA") or ROOT.parent / "shared" / "data") / "bandit"


def share(hits: np.ndarray) -> tuple[float, float, float]:
    """A share and its exact 95% interval (Clopper and Pearson)."""
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, "exact")
    return float(hits.mean()), float(found.low), float(found.high)


def false_alarms(trials: int) -> Iterator[Figure]:
    """A/A experiments of 28 days: judged once, and looked at every day."""
    days, users = 28, 100
    told = f"{trials:,} A/A experiments of {days} days, skewed values, alpha {ALPHA}"
    null = arriving(trials, days, users, seed=1)
    sizes = {"tuned_for": 2 * days * users}
    once = null.p_values("fixed", **sizes, last=True)[:, 0] <= ALPHA
    yield Figure("aa_false_positive", *_spread(share(once)), aim="0.05", reference=told)
    peeked = (null.p_values("sequential", **sizes) <= ALPHA).any(1)
    more = f"{told}; looked at every day"
    yield Figure("aa_false_positive_peeking", *_spread(share(peeked)), aim="≤ 0.05", reference=more)
    naive = (null.p_values("fixed", **sizes) <= ALPHA).any(1)
    name = "aa_false_positive_peeking_fixed"
    yield Figure(name, *_spread(share(naive)), reference=f"{more}; what a plain t-test does")
    same = returning(trials, days, 2 * users, seed=2)
    back = (same.p_values("sequential", **sizes) <= ALPHA).any(1)
    name = "aa_false_positive_peeking_returning"
    yield Figure(
        name, *_spread(share(back)), aim="≤ 0.05",
        reference=f"{more}; the same users every day",
    )  # fmt: skip


def power(trials: int) -> Iterator[Figure]:
    """Experiments of the planned size, with the planned effect."""
    lift, days = 0.15, 14
    for analysis in ("fixed", "sequential"):
        experiment = Experiment(
            name="x", primary="m", minimum_effect=lift, analysis=analysis,
            start="2026-01-01", end="2026-01-15",
            arms=(Arm(name="a", share=0.5), Arm(name="b", share=0.5)),
        )  # fmt: skip
        # the deviation of a gamma of shape 1/2 is √2 of its mean, and grows with the lift
        needed = users_needed(experiment, lift / np.sqrt(1 + (1 + lift) ** 2))
        world = arriving(trials, days, -(-needed // (2 * days)), lift=lift, seed=3)
        found = world.p_values(analysis, tuned_for=needed) <= ALPHA
        told = f"planned 0.8, lift {lift:.0%}, {needed:,} users, {trials:,} experiments"
        if analysis == "fixed":
            yield Figure("ab_power", *_spread(share(found[:, -1])), aim="0.80", reference=told)
            continue
        at_end = share(found[:, -1])
        yield Figure("ab_power_sequential", *_spread(at_end), aim="0.80", reference=told)
        ever = found.any(1)
        yield Figure(
            "ab_power_sequential_any_day", *_spread(share(ever)), aim="≥ 0.80",
            reference=f"{told}; stopped as soon as clear",
        )  # fmt: skip
        when = np.where(ever, found.argmax(1) + 1, days) / days
        low, high = np.quantile(when, [0.025, 0.975])
        yield Figure(
            "ab_sequential_users_used", float(when.mean()), "of the planned", float(low),
            float(high), reference=f"{told}; mean, and 95% of the experiments",
        )  # fmt: skip


def cuped(trials: int) -> Iterator[Figure]:
    """Share of the variance that goes, against the square of the correlation."""
    for correlation in (0.5, 0.8):
        cuts = []
        for seed in range(trials):
            values, before, treated = with_covariate(4000, correlation=correlation, seed=seed)
            arms = [~treated, treated]
            theta = adjustment([values[a] for a in arms], [before[a] for a in arms]).theta
            plain, less = (
                difference(*[sample(values[a], before[a], theta=t) for a in arms])
                for t in (0.0, theta)
            )
            cuts.append(1 - (less.error / plain.error) ** 2)
        name = "cuped_variance_cut" if correlation == 0.8 else "cuped_variance_cut_weak"
        low, high = np.quantile(cuts, [0.025, 0.975])
        yield Figure(
            name, float(np.mean(cuts)), "", float(low), float(high), f"{correlation**2:.2f}",
            f"theory: {correlation**2:.2f}, the square of the correlation {correlation}; "
            f"{trials} experiments of 4,000 users",
        )  # fmt: skip


def off_policy(worlds: int) -> Iterator[Figure]:
    """Lists of three slots, forty items, a skewed logging policy: does the interval cover?"""
    items, places, n = 40, 3, 4000
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    how = OffPolicySettings(resamples=200)
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        rate, factor = rng.uniform(0.02, 0.3, items), np.array([1.0, 0.6, 0.4])
        logging, other = (rng.dirichlet(np.full(items, a), places) for a in (3.0, 1.0))
        logging = 0.9 * logging + 0.1 / items
        place = rng.integers(0, places, n)
        drawn = np.minimum((rng.random(n)[:, None] > logging.cumsum(1)[place]).sum(1), items - 1)
        reward = rng.random(n) < rate[drawn] * factor[place]
        log = pl.DataFrame({
            "item_id": drawn, "position": place + 1, "reward": reward.astype(float),
            "propensity": logging[place, drawn], "user_id": rng.integers(0, n // 4, n),
        })  # fmt: skip
        at, item = np.indices(other.shape)
        policy = pl.DataFrame({
            "position": at.ravel() + 1, "item_id": item.ravel(), "probability": other.ravel()
        })  # fmt: skip
        truth = float((other * rate * factor[:, None]).sum(1).mean())
        for name, value in evaluate_policy(logged_rows(log, policy), settings=how).items():
            held.setdefault(name, []).append(value.interval.low <= truth <= value.interval.high)
            widths.setdefault(name, []).append((value.interval.high - value.interval.low) / truth)
    told = f"{worlds} worlds of 3 slots, {items} items, {n:,} rows"
    for name in ("dr", "snips", "ips"):
        figure = "ope_covers_truth" if name == "dr" else f"ope_covers_truth_{name}"
        yield Figure(figure, *_spread(share(np.array(held[name]))), aim="0.95", reference=told)
        low, high = np.quantile(widths[name], [0.025, 0.975])
        yield Figure(
            f"ope_width_{name}", float(np.mean(widths[name])), "of the value", float(low),
            float(high), reference=told,
        )  # fmt: skip


def open_bandit() -> Iterator[Figure]:
    """The value of one policy from the other's log, beside what it really got."""
    if not DATA.is_dir():
        print(f"no Open Bandit data in {DATA}: left out")
        return
    logs = {n: read_log(DATA / f"open_bandit_{n}_all.csv.gz") for n in ("random", "bts")}
    logs = {n: f.select("item_id", "position", "reward", "propensity") for n, f in logs.items()}
    for judged, logged in (("bts", "random"), ("random", "bts")):
        total = pl.col("len").sum().over("position")
        policy = logs[judged].group_by("position", "item_id").len()
        policy = policy.select("position", "item_id", probability=pl.col("len") / total)
        if judged == "random":
            policy = policy.with_columns(probability=pl.lit(1 / 80))
        rows = logged_rows(logs[logged], policy)
        truth = logs[judged]["reward"]
        clicks = int((rows.reward > 0).sum())
        for name in ("dr", "snips"):
            value = evaluate_policy(rows, [name])[name].interval
            yield Figure(
                f"open_bandit_{judged}_{name}", value.value, "clicks a slot", value.low, value.high,
                reference=f"from the {logged} log of 10,000 rows and {clicks} clicks; "
                f"it really got {truth.mean():.4f} ({int(truth.sum())} clicks)",
            )  # fmt: skip


def bandits(runs: int) -> Iterator[Figure]:
    """Regret of Thompson sampling in parts of that of even shares; its log judges every arm."""
    rates = np.array([0.05, 0.06, 0.08, 0.1, 0.15])
    regret, held = [], []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        bandit = Thompson([f"a{n}" for n in range(5)], floor=0.02, seed=seed)
        arms, chances, rewards = [], [], []
        for _ in range(100):
            p = bandit.probabilities()
            batch = rng.choice(5, 40, p=p)
            earned = rng.random(40) < rates[batch]
            bandit.update(batch, earned)
            arms.append(batch)
            chances.append(p[batch])
            rewards.append(earned)
        arm, chance = np.concatenate(arms), np.concatenate(chances)
        reward = np.concatenate(rewards).astype(float)
        regret.append((rates.max() - rates[arm]).mean() / (rates.max() - rates.mean()))
        for each in (0, 4):
            rows = LoggedRows(reward, chance, (arm == each) * 1.0, np.arange(len(arm)))
            value = evaluate_policy(rows, ["snips"], OffPolicySettings(resamples=200))["snips"]
            held.append(value.normal.low <= rates[each] <= value.normal.high)
    low, high = np.quantile(regret, [0.025, 0.975])
    told = f"{runs} runs of 4,000 choices between 5 arms, learning every 40"
    yield Figure(
        "thompson_regret", float(np.mean(regret)), "of even shares", float(low), float(high),
        reference=told,
    )  # fmt: skip
    yield Figure(
        "thompson_log_covers_truth", *_spread(share(np.array(held))), aim="0.95",
        reference=f"{told}; best and worst arm, snips, adaptively collected",
    )  # fmt: skip


def interleaving(runs: int) -> Iterator[Figure]:
    """How many users a preference needs, beside an A/B test of the same clicks."""
    users, lists, lift = 300, 4, 1.25
    found = {"interleaving": [], "ab": []}
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        keen = rng.gamma(1.0, 0.08, users)
        team = rng.permuted(np.tile([0, 0, 0, 1, 1, 1], (users * lists, 1)), axis=1).ravel()
        user = np.repeat(np.arange(users), lists * 6)
        chance = np.minimum(keen[user] * np.where(team == 1, lift, 1), 1)
        clicked = rng.random(len(team)) < chance
        request = np.repeat(np.arange(users * lists), 6)
        made = judge_interleaving(team, clicked, request, user, analysis="fixed")
        found["interleaving"].append(made.low > 0)
        arm = rng.permutation(np.arange(users) % 2)
        shown = np.minimum(keen * np.where(arm == 1, lift, 1), 1)
        clicks = rng.binomial(lists * 6, shown).astype(float)
        test = difference(sample(clicks[arm == 0]), sample(clicks[arm == 1]))
        found["ab"].append(test.low > 0)
    told = f"{runs} runs, {users} users, clicks {lift - 1:.0%} likelier; power at alpha {ALPHA}"
    for name, hits in found.items():
        figure = f"{name}_power_{users}_users"
        yield Figure(figure, *_spread(share(np.array(hits))), reference=told)


def _spread(found: tuple[float, float, float]) -> tuple[float, str, float, float]:
    value, low, high = found
    return value, "", low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    started = time.monotonic()
    figures = [
        *false_alarms(options.trials),
        *power(options.trials),
        *cuped(max(20, options.trials // 10)),
        *off_policy(max(20, options.trials // 4)),
        *open_bandit(),
        *bandits(max(20, options.trials // 10)),
        *interleaving(max(20, options.trials // 2)),
    ]
    (RESULTS / "loop").mkdir(parents=True, exist_ok=True)
    write_result("loop/experiments", figures, time.monotonic() - started)


if __name__ == "__main__":
    main()

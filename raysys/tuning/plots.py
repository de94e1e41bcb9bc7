"""Plots of a search: its course, parallel coordinates, what matters, each setting, the fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.report import COLOURS, new_figure
from raysys.tuning.settings import Goal
from raysys.tuning.space import Choice, Parameter, distributions, told
from raysys.tuning.study import COMPLETE, STOPPED, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAIL = "ndcg@10 on the tail"
FEWEST = 6
"""Completed trials below which nothing is said of what matters."""


def best_so_far(
    trials: Sequence[Trial], goal: Goal, cost: float
) -> tuple[list[float], list[float]]:
    """Core-seconds spent and the best score then, after each trial that ended.

    Args:
        trials: in order of proposal.
        goal: what is best.
        cost: CPUs that a trial holds.
    """
    spent, scores = [], []
    total, best = 0.0, -np.inf
    for trial in trials:
        total += trial.seconds * cost
        if trial.state == COMPLETE and trial.score is not None:
            best = max(best, goal.sign * trial.score)
        if np.isfinite(best):
            spent.append(total)
            scores.append(goal.sign * best)
    return spent, scores


def course(studies: Mapping[str, Sequence[Trial]], goal: Goal, cost: float) -> Figure:
    """Each completed trial, and the best so far of each study, against what they cost."""
    figure, axes = new_figure()
    for colour, (name, trials) in zip((COLOURS[0], COLOURS[5]), studies.items(), strict=False):
        at = np.cumsum([trial.seconds * cost for trial in trials])
        done = [place for place, trial in enumerate(trials) if trial.state == COMPLETE]
        scores = [trials[place].score for place in done]
        axes.scatter(at[done], scores, color=colour, s=20, alpha=0.6, zorder=3)
        spent, best = best_so_far(trials, goal, cost)
        axes.step(spent, best, where="post", color=colour, label=name)
    if len(studies) > 1:
        axes.legend(loc="lower right" if goal.sign > 0 else "upper right")
    axes.set_xlim(left=0)
    axes.set_xlabel("core-seconds")
    axes.set_ylabel(goal.metric)
    return figure


def fits(trials: Sequence[Trial], best: Trial, label: str = TAIL) -> Figure:
    """What was told on the way by step, a line a trial; `label` says what it is."""
    figure, axes = new_figure()
    for trial in trials:
        if not trial.tail:
            continue
        steps, scores = zip(*trial.tail, strict=True)
        colour = COLOURS[5] if trial.state == STOPPED else COLOURS[0]
        strong = trial.number == best.number
        axes.plot(
            steps,
            scores,
            color=COLOURS[1] if strong else colour,
            alpha=1.0 if strong else 0.5,
            linewidth=2.0 if strong else 1.0,
            marker="." if len(steps) == 1 else None,
        )
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    return figure


def importance(
    space: Mapping[str, Parameter], trials: Sequence[Trial], seed: int
) -> dict[str, float]:
    """How much of the variance of completed scores each setting explains, summing to 1.

    fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014), by a random forest. Empty where there are
    too few trials or all scored the same.
    """
    import optuna

    done = [trial for trial in trials if trial.score is not None]
    if len(done) < FEWEST or len({trial.score for trial in done}) < 2:
        return {}
    wanted = distributions(space)
    study = optuna.create_study(direction="maximize")
    for trial in done:
        found = optuna.trial.create_trial(
            value=trial.score, params=trial.values, distributions=wanted
        )
        study.add_trial(found)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def important(shares: Mapping[str, float]) -> Figure:
    """A bar a setting, the most important on top."""
    figure, axes = new_figure(height=0.6 + 0.34 * len(shares))
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color=COLOURS[0], height=0.6)
    axes.set_xlabel("share of the variance of scores")
    axes.grid(axis="y", visible=False)
    return figure


def parallel(space: Mapping[str, Parameter], trials: Sequence[Trial], goal: Goal) -> Figure:
    """A line a trial across all settings to its score, the better the darker, the best marked."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    done = [trial for trial in trials if trial.state == COMPLETE and trial.score is not None]
    done.sort(key=lambda trial: goal.sign * (trial.score or 0.0))
    new = new_figure()[0]
    plt.close(new)
    figure, axes = plt.subplots(figsize=(max(9.0, 1.3 * (len(space) + 1)), 4.2))
    scores = np.array([trial.score for trial in done], dtype=float)
    spread = float(np.ptp(scores)) or 1.0
    shade = mpl.colormaps["Blues"]
    for place, trial in enumerate(done):
        points = [_place(parameter, trial.values.get(name)) for name, parameter in space.items()]
        points.append((scores[place] - scores.min()) / spread)
        best = place == len(done) - 1
        axes.plot(
            points,
            color=COLOURS[1] if best else shade(0.2 + 0.7 * place / max(1, len(done) - 1)),
            linewidth=2.2 if best else 1.0,
            alpha=1.0 if best else 0.75,
            zorder=3 if best else 2,
        )
    for at, parameter in enumerate(space.values()):
        axes.axvline(at, color=COLOURS[5], linewidth=0.8, zorder=1)
        for height, label in _ticks(parameter):
            axes.annotate(
                label, (at, height), xytext=(4, 0), textcoords="offset points", fontsize=8,
                va="center", bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none",
                                   "alpha": 0.7}, zorder=4,
            )  # fmt: skip
    axes.axvline(len(space), color=COLOURS[5], linewidth=0.8, zorder=1)
    for height, score in ((0.0, scores.min()), (1.0, scores.max())):
        axes.annotate(
            f"{score:.4g}", (len(space), height), xytext=(4, 0), textcoords="offset points",
            fontsize=8, va="center",
        )  # fmt: skip
    axes.set_xticks(range(len(space) + 1), [*space, goal.metric], rotation=20, ha="right")
    axes.set_yticks([])
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlim(-0.1, len(space) + 0.5)
    figure.tight_layout()
    return figure


def settings(
    space: Mapping[str, Parameter], complete: Sequence[Trial], best: Trial, metric: str
) -> Figure:
    """One small plot a setting: its value against the score."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    new = new_figure()[0]  # sets the reports' style
    plt.close(new)
    columns = min(3, len(space))
    rows = -(-len(space) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(9.0, 2.5 * rows), squeeze=False, sharey=True
    )
    for axes in grid.flat[len(space) :]:
        axes.set_visible(False)
    for axes, (name, parameter) in zip(grid.flat, space.items(), strict=False):
        values: list[Any] = [trial.values[name] for trial in complete]
        if isinstance(parameter, Choice):
            values = [parameter.grid(0).index(value) for value in values]
        scores = [trial.score for trial in complete]
        colours = [COLOURS[1] if trial is best else COLOURS[0] for trial in complete]
        axes.scatter(values, scores, c=colours, s=22)
        axes.set_title(name, fontsize=10)
        if isinstance(parameter, Choice):
            labels = [_label(value) for value in parameter.grid(0)]
            axes.set_xticks(range(len(labels)), labels, rotation=20 if max(map(len, labels)) > 5
                            else 0)  # fmt: skip
            axes.set_xlim(-0.5, len(labels) - 0.5)
        elif parameter.log:
            axes.set_xscale("log")
            between = (1.0, 2.0, 5.0) if parameter.high < 100 * parameter.low else (1.0,)
            axes.xaxis.set_major_locator(LogLocator(subs=between))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(NullLocator())
    grid[0, 0].set_ylabel(metric)
    figure.tight_layout()
    return figure


def _place(parameter: Parameter, value: Any) -> float:
    """A value's height, 0 … 1, on its axis."""
    if isinstance(parameter, Choice):
        choices = parameter.grid(0)
        return choices.index(value) / max(1, len(choices) - 1)
    low, high = float(parameter.low), float(parameter.high)
    if high == low:
        return 0.5
    if parameter.log:
        return float(np.log(value / low) / np.log(high / low))
    return (float(value) - low) / (high - low)


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Heights and labels of an axis: its ends, or all choices."""
    if isinstance(parameter, Choice):
        choices = parameter.grid(0)
        return [(_place(parameter, value), _label(value)) for value in choices]
    return [(0.0, f"{parameter.low:g}"), (1.0, f"{parameter.high:g}")]


def _label(value: Any) -> str:
    text = told(value)
    return text if len(text) <= 24 else text[:22] + "…"

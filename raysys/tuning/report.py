"""What a search found: a table and plots as HTML, and the best settings as YAML for `train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raysys.report import COLOURS, Report, new_figure
from raysys.storage import write_atomic
from raysys.tuning.search import COMPLETE, METRIC, STOPPED, Trial, best_of
from raysys.tuning.space import Choice, Parameter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_best(path: Path, learner: str, settings: Mapping[str, Any], trials: list[Trial]) -> None:
    """Write the settings of the best trial as the YAML of one learner, as `train` takes it.

    Args:
        path: the file.
        learner: its name.
        settings: what was not searched but set.
        trials: of the search.
    """
    best = best_of(trials)
    head = (
        f"# The best of {len(trials)} trials: {METRIC} {best.score:.4f} on the validation fold\n"
        f"# (trial {best.number}). Written by `raysys tune`.\n"
    )
    content = {learner: {**settings, **best.values}}
    write_atomic(path, head + yaml.safe_dump(content, sort_keys=False))


def write_report(
    path: Path, learner: str, space: Mapping[str, Parameter], trials: list[Trial]
) -> None:
    """Write the page: figures, the course of the search, each setting against the score, table."""
    best = best_of(trials)
    complete = [trial for trial in trials if trial.state == COMPLETE]
    stopped = [trial for trial in trials if trial.state == STOPPED]
    first = complete[0]
    page = Report(f"Search: {learner}", f"{METRIC} on the validation fold; higher is better.")
    facts: list[tuple[str, object]] = [
        (f"best {METRIC}", f"{best.score:.4f}"),
        (f"first completed (trial {first.number})", f"{first.score:.4f}"),
        ("trials", len(trials)),
        ("stopped early", (stopped and len(stopped)) or 0),
        ("seconds in trials", round(sum(trial.seconds for trial in trials))),
    ]
    page.section("Outcome").facts(facts).table(
        ["setting", "best", "searched"],
        [[name, _value(best.values[name]), _range(space[name])] for name in space],
    )
    page.section("Course").plot(
        _course(trials), "Each dot a completed trial, the line the best so far."
    )
    if any(trial.tail for trial in trials):
        page.section("Fits").plot(
            _fits(trials, best),
            f"{METRIC} on the tail of the fitted rows as each fit went on; ASHA compares these. "
            "Grey: stopped early.",
        )
    page.section("Settings").plot(
        _settings(space, complete, best), "Each setting against the score; the best is marked."
    )
    order = sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0.0)))
    names = list(space)
    page.section("Trials").table(
        ["trial", "state", METRIC, "seconds", *names],
        [
            [
                str(trial.number),
                trial.state,
                "" if trial.score is None else f"{trial.score:.4f}",
                f"{trial.seconds:.1f}",
                *(_value(trial.values.get(name)) for name in names),
            ]
            for trial in order
        ],
        strong=[order.index(best)],
    )
    failed = [trial for trial in trials if trial.error]
    if failed:
        page.section("Failures").table(
            ["trial", "reason"], [[str(trial.number), trial.error] for trial in failed]
        )
    page.write(path)


def _course(trials: list[Trial]) -> Figure:
    """Scores in order of proposal, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure()
    done = [trial for trial in trials if trial.score is not None]
    numbers = [trial.number for trial in done]
    scores = [trial.score or 0.0 for trial in done]
    best = [max(scores[: at + 1]) for at in range(len(scores))]
    axes.scatter(numbers, scores, color=COLOURS[0], s=26, zorder=3)
    axes.step(numbers, best, where="post", color=COLOURS[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(METRIC)
    return figure


def _fits(trials: list[Trial], best: Trial) -> Figure:
    """The tail's score by step, a line a trial."""
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
    axes.set_ylabel(f"{METRIC} on the tail")
    return figure


def _settings(space: Mapping[str, Parameter], complete: list[Trial], best: Trial) -> Figure:
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
            values = [str(value) for value in values]
        scores = [trial.score for trial in complete]
        colours = [COLOURS[1] if trial is best else COLOURS[0] for trial in complete]
        axes.scatter(values, scores, c=colours, s=22)
        axes.set_title(name, fontsize=10)
        if not isinstance(parameter, Choice) and parameter.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(NullLocator())
    figure.tight_layout()
    return figure


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return " or ".join(str(value) for value in parameter.choices)
    scale = ", logarithmic" if parameter.log else ""
    return f"from {_value(parameter.low)} to {_value(parameter.high)}{scale}"
